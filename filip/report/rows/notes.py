"""The sentences below a table: its intervals, what evaluations warn of, settings in which rows differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from filip.eval.protocols.retrieval import WAYS
from filip.report.rows.cells import Inputs
from filip.report.table import Table
from filip.table_writer import differing


def intervals(table: Table) -> list[str]:
    """Say what the intervals of a table are; nothing if it has none."""
    cells = [c for row in table.rows for c in row.cells.values() if c.ci95 and row.kind != "paper"]
    notes = []
    if any(cell.seeds == 1 for cell in cells):
        notes.append("Intervals of one training: 95 % by bootstrap over the test images.")
    if several := sorted({cell.seeds for cell in cells if cell.seeds > 1}):
        counts = " or ".join(str(n) for n in several)
        notes.append(
            f"Rows of {counts} seeds: the mean over the trainings, and the 95 % interval of that mean (Student's t "
            "over the trainings)."
        )
    return notes


def warnings(inputs: Inputs, protocol: str, runs: Sequence[str]) -> list[str]:
    """Return the warnings of the evaluations of these runs, each once.

    They are of a test set of another size, another split, scores that are not finite, ranking in two stages.
    """
    notes = []
    for run in runs:
        for name, found in (inputs.results.evaluation(run, protocol) or {}).get("benchmarks", {}).items():
            where = f"{inputs.study.label(run)}, {inputs.title(name)}"
            if found.get("protocol"):
                notes.append(f"{inputs.title(name)}: {found['protocol']}.")
            if found.get("note"):
                notes.append(f"{inputs.title(name)}: {found['note']}.")
            if bad := found.get("not_finite"):
                notes.append(
                    f"{where}: {bad:,} of {found['n']:,} images have scores that are not finite; they rank last."
                )
            if found.get("two_stage"):
                notes.append(f"{where}: {_two_stages(found['two_stage'])}")
    return list(dict.fromkeys(notes))


def _two_stages(stage: dict[str, Any]) -> str:
    """Say how a recall that is not exact came about, and what it lost."""
    lost = stage.get("lost")
    loss = "what that loses was not measured"
    if lost:
        points = [
            f"{name} {' / '.join(f'{100 * lost[way][rank]:.1f}' for rank in lost[way])}" for way, name in WAYS.items()
        ]
        loss = f"points lost against exact ranking at R@1 / 5 / 10: {', '.join(points)}"
    return f"exact scores only for the best {stage['shortlist']} by {stage['by']} vectors; {loss}."


def differences(inputs: Inputs, protocol: str, runs: Sequence[str]) -> list[str]:
    """Write a sentence for each setting (prompts, ensemble, ranking, image size, precision) that rows do not share."""
    found = {}
    for run in runs:
        result = inputs.results.evaluation(run, protocol)
        if result:
            found[inputs.study.label(run)] = _settings(result)
    return [f"Rows differ in {setting}: {said}." for setting, said in differing(found)]


def _settings(result: dict[str, Any]) -> dict[str, str]:
    """Return what a result file says about how it came about; nothing for what it does not say."""
    own = result.get("settings") or {}
    ranking = {"i2t": own.get("rank_texts_by"), "t2i": own.get("rank_images_by")}
    settings = {
        "prompts": own.get("prompts"),
        "ensemble": {"score": "mean of scores", "embedding": "mean vector"}.get(str(own.get("ensemble"))),
        "ranking": ", ".join(f"{way} by {by}" for way, by in ranking.items() if by),
        "image size": f"{result['image_size']} px" if result.get("image_size") else None,
        "precision": result.get("precision"),
        "tokens": result.get("tokens"),
        "fit": result.get("fit"),
        "tokens of a text": own.get("text_tokens"),
    }
    return {name: str(value) for name, value in settings.items() if value}
