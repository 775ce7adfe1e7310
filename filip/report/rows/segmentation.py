"""Segmentation by the best class of each patch."""

from __future__ import annotations

from typing import Any

from filip.report.rows.cells import Inputs, parts_table
from filip.report.table import Cell, Table

PARTS = {"miou": "mIoU", "pixels": "pixels right"}


def build(inputs: Inputs) -> Table:
    # Neither column is a mean over images, so rows are not compared in pairs.
    columns, rows = parts_table(inputs, "segmentation", PARTS, cell, {})
    notes = [
        "Each patch takes its best class, each pixel that of its patch: mean intersection over union of the classes. "
        "Pixels count as the model sees them, without sliding windows.",
        "A pooled model's patches go through its projection, which was trained on one vector an image.",
    ]
    return Table("segmentation", "Zero-shot segmentation (%)", columns, rows, notes)


def cell(found: dict[str, Any], part: str) -> Cell:
    if part == "miou":
        return Cell(found[part], n=found["n"], ci95=found["ci95"])
    return Cell(found[part], 1 / found["classes"], found["n"])  # a class drawn for each patch
