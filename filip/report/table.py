"""A table as data: cells with value, chance, number of images, interval, or the reason why they are empty."""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from scipy.special import stdtrit


@dataclass
class Less:
    """A cell less that of the first row of its section: paired over images (:mod:`filip.report.differences`).

    effect, interval (95 %): fractions. p: after Holm's correction over the row's columns. holds: significant at 5 %.
    """

    effect: float
    interval: list[float]
    p: float
    holds: bool


@dataclass
class Cell:
    """One figure. Accuracies, recalls and chance are fractions in 0..1 (``Column.unit`` says what it is).

    seeds, std: number of repetitions that were averaged, and their standard deviation.
    reason: why value is None.
    less: its difference from the first row of the section, where outcomes per image are there.
    leads: whether it is ahead of every other row of its section by a difference that holds.
    """

    value: float | str | None = None
    chance: float | None = None
    n: int | None = None
    ci95: list[float] | None = None
    seeds: int = 1
    std: float | None = None
    reason: str | None = None
    less: Less | None = None
    leads: bool = False


@dataclass
class Column:
    """unit: percent (a fraction shown times 100), seconds, mb, ratio, number or text.

    outcomes: "<group>/<measure>" of the evaluation's outcomes that the column is the mean of; none: not compared.
    """

    key: str
    title: str
    group: str = ""
    unit: str = "percent"
    outcomes: list[str] = field(default_factory=list)


@dataclass
class Row:
    """kind: ours (measured here), peer (another model, measured here) or paper (published)."""

    label: str
    kind: str
    cells: dict[str, Cell]
    section: str = ""
    run: str | None = None
    run_id: str | None = None
    commit: str | None = None


@dataclass
class Table:
    name: str
    title: str
    columns: list[Column]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def cell(self, row: Row, column: Column) -> Cell:
        return row.cells.get(column.key, Cell())

    def as_json(self) -> dict[str, Any]:
        """Plain data, as in ``tables.json``."""
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> Table:
        """The table that ``as_json`` made ``content`` of."""
        rows = [
            Row(**{**row, "cells": {key: _cell_from(cell) for key, cell in row["cells"].items()}})
            for row in content["rows"]
        ]
        columns = [Column(**column) for column in content["columns"]]
        return Table(content["name"], content["title"], columns, rows, content["notes"])

    @property
    def sections(self) -> list[str]:
        return list(dict.fromkeys(row.section for row in self.rows))


def _cell_from(content: dict[str, Any]) -> Cell:
    less = content.get("less")
    return Cell(**{**content, "less": Less(**less) if less else None})


def combine(cells: list[Cell]) -> Cell:
    """The mean over repetitions with other seeds; the interval is then Student's t for the mean over
    seeds (it covers the variance between trainings, not that of the test images).

    Repetitions that have no value are left out. One repetition is returned as it is.
    """
    measured = [cell for cell in cells if isinstance(cell.value, int | float)]
    if len(measured) <= 1:
        return measured[0] if measured else (cells[0] if cells else Cell(reason="not run"))
    values = [float(cell.value) for cell in measured if cell.value is not None]
    mean, std = statistics.fmean(values), statistics.stdev(values)
    half = float(stdtrit(len(values) - 1, 0.975)) * std / math.sqrt(len(values))
    return Cell(mean, measured[0].chance, measured[0].n, [mean - half, mean + half], len(values), std)


def average(cells: list[Cell], what: str) -> Cell:
    """The plain mean over benchmarks; empty if one of them is, as a mean over fewer would not compare."""
    if not cells:
        return Cell(reason=f"no {what}")
    if missing := [cell for cell in cells if not isinstance(cell.value, int | float)]:
        return Cell(reason=missing[0].reason or f"not all {what} run")
    chances = [cell.chance for cell in cells if cell.chance is not None]
    counts = [cell.n for cell in cells if cell.n is not None]
    # As if no image were in two of them: the squares of the half widths add. Where there are outcomes,
    # filip.report.rows.pairs replaces this interval by one that draws shared images together.
    halves = [(c.ci95[1] - c.ci95[0]) / 2 for c in cells if c.ci95]
    mean = statistics.fmean(float(c.value) for c in cells if isinstance(c.value, int | float))
    half = math.sqrt(sum(h * h for h in halves)) / len(cells) if len(halves) == len(cells) else None
    return Cell(
        mean,
        statistics.fmean(chances) if len(chances) == len(cells) else None,
        sum(counts) if len(counts) == len(cells) else None,
        [mean - half, mean + half] if half is not None else None,
    )


def published_cell(value: float | None) -> Cell:
    """A percentage of a paper as a fraction."""
    return Cell(reason="not reported") if value is None else Cell(value / 100)


def text_cell(value: Any) -> Cell:
    return Cell(reason="does not apply") if value is None else Cell(str(value))
