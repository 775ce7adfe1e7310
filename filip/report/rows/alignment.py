"""Table of how often a label points at its object: what the paper's alignment pictures show, as a number."""

from __future__ import annotations

from typing import Any

from filip.report.rows.cells import Inputs, parts_table
from filip.report.table import Cell, Table

MEASURES = {
    "pointing_value": "label on its object",
    "composites_value": "of two, on its own",
    "composites_own_side": "of two, own side",
}

OUTCOMES = {
    "pointing_value": ".pointing/right",
    "composites_value": ".composites/right",
    "composites_own_side": ".composites/own_side",
}


def build(inputs: Inputs) -> Table:
    columns, rows = parts_table(inputs, "alignment", MEASURES, _cell, OUTCOMES)
    notes = [
        "The patch most similar to any token of the label lies on the object (by the drawing's own mask). "
        "Two: two images side by side with a text that names both.",
        "A pooled model's patches and words go through its projections, which were trained on one vector each.",
    ]
    return Table("alignment", "Word-patch alignment: pointing accuracy (%)", columns, rows, notes)


def _cell(found: dict[str, Any], measure: str) -> Cell:
    part, _, key = measure.partition("_")
    measured = found[part]
    if measured.get(key) is None:
        return Cell(reason=measured.get("reason", "not measured"))
    prefix = "" if key == "value" else f"{key}_"
    return Cell(measured[key], measured[f"{prefix}chance"], measured["n"], measured.get(f"{prefix}ci95"))
