"""How the rows of a table were evaluated, said below it where they differ."""

from __future__ import annotations

from typing import Any

from filip.report.rows.cells import Inputs


def differences(inputs: Inputs, protocol: str) -> list[str]:
    """A sentence for each setting (prompts, ensemble, ranking, image size, precision) that rows do not share."""
    found = {}
    for run in inputs.study.rows(protocol):
        result = inputs.results.evaluation(run, protocol)
        if result:
            found[inputs.study.label(run)] = _settings(result)
    notes = []
    for setting in dict.fromkeys(name for settings in found.values() for name in settings):
        values = {label: settings.get(setting, "not stated") for label, settings in found.items()}
        if len(set(values.values())) > 1:
            by_value: dict[str, list[str]] = {}
            for label, value in values.items():
                by_value.setdefault(value, []).append(label)
            said = "; ".join(f"{value}: {', '.join(labels)}" for value, labels in by_value.items())
            notes.append(f"Rows differ in {setting}: {said}.")
    return notes


def _settings(result: dict[str, Any]) -> dict[str, str]:
    """What a result file says of how it came about; nothing for what it does not say."""
    own = result.get("settings") or {}
    ranking = {"i2t": own.get("rank_texts_by"), "t2i": own.get("rank_images_by")}
    settings = {
        "prompts": own.get("prompts"),
        "ensemble": {"score": "mean of scores", "embedding": "mean vector"}.get(str(own.get("ensemble"))),
        "ranking": ", ".join(f"{way} by {by}" for way, by in ranking.items() if by),
        "image size": f"{result['image_size']} px" if result.get("image_size") else None,
        "precision": result.get("precision"),
        "tokens": result.get("tokens"),
    }
    return {name: str(value) for name, value in settings.items() if value}
