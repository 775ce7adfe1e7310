"""How often a model picks the true caption of an image among false ones."""

from __future__ import annotations

from typing import Any

from filip.report.rows.cells import Inputs, parts_table
from filip.report.table import Cell, Table

RANKINGS = {"image": "by s^I", "text": "by s^T", "mean": "by their mean"}


def build(inputs: Inputs) -> Table:
    columns, rows = parts_table(inputs, "selection", RANKINGS, cell, {by: f"/{by}" for by in RANKINGS})
    notes = [
        "The true caption has the highest similarity to its image. A pooled model has one similarity only."
    ]
    notes += [
        f"{inputs.title(name)}: {note}"
        for name in inputs.study.benchmarks("selection")
        if (note := inputs.cards[name].note)
    ]
    return Table("selection", "Caption selection (accuracy, %)", columns, rows, notes)


def cell(found: dict[str, Any], by: str) -> Cell:
    return Cell(found[by]["value"], found["chance"], found["n"], found[by]["ci95"])
