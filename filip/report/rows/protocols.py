"""How the rows of a table were evaluated, said below it where they differ."""

from __future__ import annotations

from typing import Any

from filip.report.rows.cells import Inputs
from filip.table_writer import differing


def differences(inputs: Inputs, protocol: str) -> list[str]:
    """A sentence for each setting (prompts, ensemble, ranking, image size, precision) that rows do not share."""
    found = {}
    for run in inputs.study.rows(protocol):
        result = inputs.results.evaluation(run, protocol)
        if result:
            found[inputs.study.label(run)] = _settings(result)
    return [f"Rows differ in {setting}: {said}." for setting, said in differing(found)]


def _settings(result: dict[str, Any]) -> dict[str, str]:
    """What a result file says of how it came about; nothing for what it does not say."""
    ranking = result.get("ranking") or {}
    settings = {
        "prompts": result.get("prompt_file"),
        "ensemble": {"score": "mean of scores", "embedding": "mean vector"}.get(str(result.get("ensemble"))),
        "ranking": ", ".join(f"{way} by {by}" for way, by in ranking.items()),
        "image size": f"{result['image_size']} px" if result.get("image_size") else None,
        "precision": result.get("precision"),
        "tokens": result.get("tokens"),
    }
    return {name: str(value) for name, value in settings.items() if value}
