"""Segmentation by the best class of each patch."""

from __future__ import annotations

from typing import Any

from filip.report.rows.cells import Inputs, parts_table
from filip.report.table import Cell, Table

PARTS = {
    "miou": "mIoU",
    "pixels": "pixels right",
    "present_pixels": "pixels right, of the image's classes",
    "present_miou": "mIoU, of the image's classes",
}


def build(inputs: Inputs) -> Table:
    # Only one column's outcomes are kept for each image; the rows are compared in pairs by it.
    columns, rows = parts_table(inputs, "segmentation", PARTS, cell, {"present_pixels": "/present"})
    notes = [
        "Each patch takes its best class, each pixel that of its patch: mean intersection over union of the classes. "
        "Pixels count as the model sees them, without sliding windows.",
        "In columns of the image's classes, its patches choose from the classes that it has, as SPARC evaluates.",
        "A pooled model's patches go through its projection, which was trained on one vector an image.",
    ]
    return Table("segmentation", "Zero-shot segmentation (%)", columns, rows, notes)


def cell(found: dict[str, Any], part: str) -> Cell:
    if part == "miou":
        return Cell(found[part], n=found["n"], ci95=found["ci95"])
    if part.startswith("present_"):
        own, name = found.get("present") or {}, part.removeprefix("present_")
        chance = own.get("chance") if name == "pixels" else None
        reason = None if own else "evaluated before this was measured"
        return Cell(own.get(name), chance, found["n"], own.get("ci95", {}).get(name), reason=reason)
    return Cell(found[part], 1 / found["classes"], found["n"])  # a class drawn for each patch
