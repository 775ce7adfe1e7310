"""The sentences below a table: what its intervals are, what the evaluations warned of, what did not get better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from filip.report.study import Results, Study
from filip.report.table import Table

__all__ = ["RANKS", "WAYS", "first_against_last", "intervals", "warnings"]

RANKS = ("r1", "r5", "r10")
WAYS = {"i2t": "image → text", "t2i": "text → image"}


def intervals(table: Table) -> list[str]:
    """What the intervals of a table are, as far as it has any."""
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


def first_against_last(table: Table) -> list[str]:
    """A sentence on where the last of our rows stands above the first, and where it does not; none if not run."""
    ours = [row for row in table.rows if row.kind == "ours"]
    if len(ours) < 2:
        return []
    above: list[str] = []
    below: list[str] = []
    apart = 0
    for column in table.columns:
        one, other = (table.cell(row, column) for row in (ours[0], ours[-1]))
        if not (isinstance(one.value, int | float) and isinstance(other.value, int | float)):
            continue
        name = f"{column.group}: {column.title}" if column.group else column.title
        (above if other.value > one.value else below).append(name)
        if one.ci95 and other.ci95:
            apart += one.ci95[1] < other.ci95[0] or other.ci95[1] < one.ci95[0]
    if not above + below:
        return []
    where = f", not in {'; '.join(below)}" if below else ""
    return [
        f"{ours[-1].label} is above {ours[0].label} in {len(above)} of {len(above + below)} columns{where}; "
        f"their intervals do not overlap in {apart}."
    ]


def warnings(
    study: Study, results: Results, protocol: str, key: str, title: Callable[[str], str]
) -> list[str]:
    """What the evaluations of a table's runs warn of, each once: another test set's size, scores that are no numbers,
    ranking in two stages. key: where the protocol's JSON has its benchmarks; title: a benchmark's name in print."""
    notes = []
    for run in study.rows(protocol):
        for name, found in ((results.evaluation(run, protocol) or {}).get(key) or {}).items():
            where = f"{study.label(run)}, {title(name)}"
            if found.get("note"):
                notes.append(f"{title(name)}: {found['note']}.")
            if bad := found.get("not_finite"):
                notes.append(
                    f"{where}: {bad:,} of {found['n']:,} images have scores that are not finite; they rank last."
                )
            if found.get("two_stage"):
                notes.append(f"{where}: {_two_stages(found['two_stage'])}")
    return list(dict.fromkeys(notes))


def _two_stages(stage: dict[str, Any]) -> str:
    """How a recall that is not exact came about, and what it lost."""
    lost = stage.get("lost")
    said = "what that loses was not measured"
    if lost:
        points = [
            f"{WAYS[way]} {' / '.join(f'{100 * lost[way][rank]:.1f}' for rank in RANKS)}" for way in WAYS
        ]
        said = f"points lost against exact ranking at R@1 / 5 / 10: {', '.join(points)}"
    return f"exact scores only for the best {stage['shortlist']} by {stage['by']} vectors; {said}."
