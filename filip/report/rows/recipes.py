"""Every recipe in one row: its results in each kind of evaluation, and the cost of a step."""

from __future__ import annotations

from dataclasses import replace

from filip.report.rows.cells import Inputs
from filip.report.rows.efficiency import add_ratios, step_cells
from filip.report.table import Cell, Column, Table

# Protocols, the key of their figure in this table, and its title here (None: its own).
HEADLINES = (
    ("retrieval", "i2t_r1", None),
    ("retrieval", "t2i_r1", None),
    ("selection", "mean", "selection"),
    ("scene_pointing", "all", "pointing"),
    ("segmentation", "miou", "segmentation, mIoU"),
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
    shown = [
        (figure, title)
        for protocol in dict.fromkeys(protocol for protocol, _, _ in HEADLINES)
        for figure in inputs.figures(protocol)
        for of, key, title in HEADLINES
        if (of, key) == (protocol, figure.column.key)
    ]
    columns = [replace(inputs.column(f, title), headline=f.protocol == "retrieval") for f, title in shown]
    title = f"mean of {len(inputs.study.benchmarks('zero_shot'))} tasks"
    columns.append(replace(inputs.average_column("zero_shot", title, "Zero-shot"), headline=False))
    rows = []
    for run in runs:
        cells = {figure.key: inputs.cell(run, figure) for figure, _ in shown}
        rows.append(inputs.row(run, {**cells, "average": inputs.average_cell(run), **_cost(inputs, run)}))
    add_ratios(rows)
    notes = [
        "Recall in percent; selection by the mean of both directions; pointing on the own thing, background included.",
        "Cost: the median step, measured with all rows in turn, and what it needs beyond weights and optimiser states.",
    ]
    return Table("recipes", "What each recipe finds, and what it costs", [*columns, *COST], rows, notes)


def _cost(inputs: Inputs, run: str) -> dict[str, Cell]:
    """Return the cost in the efficiency row that shows the run's accuracy."""
    named = [name for name, row in inputs.study.efficiency.items() if row.get("accuracy_of") == run]
    if named:
        return step_cells(inputs, named[0])
    return {key: Cell(reason="no efficiency row") for key in ("seconds_per_iteration", "memory_mb")}
