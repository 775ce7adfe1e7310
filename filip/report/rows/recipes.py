"""Every recipe in one row: what it finds in each kind of evaluation, and what a step of it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from filip.report.rows import pointing, segmentation, selection
from filip.report.rows.cells import DIRECTIONS, Inputs, parts_table, recall_columns, task_outcomes
from filip.report.rows.efficiency import add_ratios, step_cells
from filip.report.table import Cell, Column, Table

# One figure of each protocol: its key there and its title here, the cell it is, and its outcome.
HEADLINES: tuple[tuple[str, dict[str, str], Callable[[dict[str, Any], str], Cell], dict[str, str]], ...] = (
    ("selection", {"mean": "selection"}, selection.cell, {"mean": "/mean"}),
    ("scene_pointing", {"all": "pointing"}, pointing.scene_cell, {"all": "/right"}),
    ("segmentation", {"miou": "segmentation, mIoU"}, segmentation.cell, {}),
)
COST = [
    Column("seconds_per_iteration", "s / step", "Cost of a step", "seconds"),
    Column("time_ratio", "x first row", "Cost of a step", "ratio"),
    Column("memory_mb", "MB / rank", "Cost of a step", "mb"),
    Column("memory_ratio", "memory x first row", "Cost of a step", "ratio"),
]


def build(inputs: Inputs) -> Table:
    """Build the table; its first row is the recipe that the others are compared with."""
    runs = inputs.study.rows("recipes")
    columns = recall_columns(inputs, inputs.study.benchmarks("retrieval"), ("r1",))
    rows = [inputs.row(run, _recalls(inputs, run)) for run in runs]
    for protocol, part, cell, outcome in HEADLINES:
        own, filled = parts_table(inputs, protocol, part, cell, outcome, runs)
        columns += own
        for row, other in zip(rows, filled, strict=True):
            row.cells |= other.cells
    tasks = inputs.study.benchmarks("zero_shot")
    title = f"mean of {len(tasks)} tasks"
    columns.append(Column("average", title, "Zero-shot", outcomes=task_outcomes(inputs, tasks)))
    for row, run in zip(rows, runs, strict=True):
        row.cells |= {"average": inputs.average_cell(run), **_cost(inputs, run)}
    add_ratios(rows)
    notes = [
        "Recall in percent; selection by the mean of both directions; pointing on the own thing, background included.",
        "Cost: the median step, measured with all rows in turn, and what it needs beyond weights and optimiser states.",
    ]
    return Table("recipes", "What each recipe finds, and what it costs", [*columns, *COST], rows, notes)


def _recalls(inputs: Inputs, run: str) -> dict[str, Cell]:
    return {
        f"{name}_{way}_r1": inputs.recall_cell(run, name, way, "r1")
        for name in inputs.study.benchmarks("retrieval")
        for way in DIRECTIONS
    }


def _cost(inputs: Inputs, run: str) -> dict[str, Cell]:
    """Return the cost in the efficiency row that shows the run's accuracy."""
    named = [name for name, row in inputs.study.efficiency.items() if row.get("accuracy_of") == run]
    if named:
        return step_cells(inputs, named[0])
    return {key: Cell(reason="no efficiency row") for key in ("seconds_per_iteration", "memory_mb")}
