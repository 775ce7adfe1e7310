"""Table of how often a model picks the true caption of an image among false ones."""

from __future__ import annotations

from typing import Any

from filip.report.rows.cells import Inputs, parts_table
from filip.report.table import Cell, Table

RANKINGS = {"image": "by s^I", "text": "by s^T", "mean": "by their mean"}
MACRO = {f"macro_{by}": f"mean of categories {name}" for by, name in RANKINGS.items()}


def build(inputs: Inputs) -> Table:
    """Build a column for each ranking of each benchmark; where its rows have categories, also of the mean over them."""

    def fits(benchmark: str, figure: str) -> bool:
        return figure in RANKINGS or "category" in inputs.cards[benchmark].layout.options

    outcome = {by: f"/{by}" for by in RANKINGS}
    columns, rows = parts_table(inputs, "selection", RANKINGS | MACRO, cell, outcome, fits=fits)
    notes = ["The true caption has the highest similarity to its image. A pooled model has one similarity only."]
    notes += [
        f"{inputs.title(name)}: {note}"
        for name in inputs.study.benchmarks("selection")
        if (note := inputs.cards[name].note)
    ]
    return Table("selection", "Caption selection (accuracy, %)", columns, rows, notes)


def cell(found: dict[str, Any], by: str) -> Cell:
    if by in MACRO:
        mean = found.get("by_category", {}).get("mean", {}).get(by.removeprefix("macro_"))
        return Cell(mean, n=found["n"], reason=None if mean is not None else "no category has enough rows")
    return Cell(found[by]["value"], found["chance"], found["n"], found[by]["ci95"])
