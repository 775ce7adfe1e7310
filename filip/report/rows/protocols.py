"""Say below a table how its rows were evaluated, where they differ."""

from __future__ import annotations

from typing import Any

from filip.report.rows.cells import Inputs
from filip.table_writer import differing


def differences(inputs: Inputs, protocol: str) -> list[str]:
    """Write a sentence for each setting (prompts, ensemble, ranking, image size, precision) that rows do not share."""
    found = {}
    for run in inputs.study.rows(protocol):
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
