"""Accuracy by benchmark, a dot for each model: where a model is strong, and where it is not."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from filip.report.looks import Look
from filip.report.plots import INK, MUTED, Looks, grid, legend_of_all, no_data
from filip.report.table import Cell, Column, Row, Table

MARKS = ("D", "s", "^", "v", "P", "X")  # of published rows, which have no colour of ours


def benchmark_dots(table: Table, looks: Looks) -> Figure:
    """A line per column of ``table`` with the accuracies of all rows; bars are 95 % intervals, ticks chance.

    Published rows are hollow marks, and are left out where they say nothing of any of the columns.
    """
    columns = table.columns
    figure, (axis,) = grid(1, 1, 9, 1.2 + 0.42 * max(3, len(columns)))
    shown = [
        row for row in table.rows if any(_value(table.cell(row, column)) is not None for column in columns)
    ]
    ours = [row for row in shown if row.kind != "paper"]
    published = [row for row in shown if row.kind == "paper"]
    for number, row in enumerate(ours):
        lift = 0.16 * ((len(ours) - 1) / 2 - number)
        _our_dots(axis, table, row, looks.get(row.run or "", Look()), lift)
    for row, mark in zip(published, MARKS * len(published), strict=False):
        found = [(i, _value(table.cell(row, column))) for i, column in enumerate(columns)]
        points = [(value, -i) for i, value in found if value is not None]
        axis.plot(
            *zip(*points, strict=True), mark, mfc="none", mec=INK, ms=5.5, label=f"{row.label} (published)"
        )
    _chance(axis, table, columns, ours)
    if not shown:
        no_data(axis, "not run yet")
    axis.set_yticks([-i for i in range(len(columns))], [column.title for column in columns])
    axis.set_xlabel("accuracy, %")
    axis.grid(True, axis="both")
    legend_of_all(figure, [axis], 3, "bars: 95 % intervals")
    return figure


def _our_dots(axis: Axes, table: Table, row: Row, look: Look, lift: float) -> None:
    label = row.label
    for number, column in enumerate(table.columns):
        cell = table.cell(row, column)
        if (value := _value(cell)) is None:
            continue
        y = lift - number
        if cell.ci95:
            axis.plot([100 * bound for bound in cell.ci95], [y, y], color=look.colour, linewidth=1.3)
        filled = "none" if look.tuned else look.colour
        axis.plot(value, y, "o", mfc=filled, mec=look.colour, ms=5.5, label=label)
        label = "_"  # matplotlib leaves labels out that begin so


def _chance(axis: Axes, table: Table, columns: list[Column], rows: list[Row]) -> None:
    label = "chance"
    for number, column in enumerate(columns):
        found = [cell.chance for row in rows if (cell := table.cell(row, column)).chance is not None]
        if found:
            axis.plot(100 * float(found[0] or 0), -number, "|", color=MUTED, ms=11, label=label)
            label = "_"


def _value(cell: Cell) -> float | None:
    return 100 * float(cell.value) if isinstance(cell.value, int | float) else None
