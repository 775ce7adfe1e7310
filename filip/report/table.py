"""A table of the report: rows of cells with value, chance, number of images, interval and difference."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from filip.common.table_writer import Grid, Head, Line, Shown
from filip.report.differences import FEWEST, over_trainings

HEAD = ("table", "section", "row", "kind", "run", "run_id", "commit", "column", "unit")
BODY = ("value", "chance", "n", "ci95_low", "ci95_high", "seeds", "std", "reason")
LESS = ("less", "less_low", "less_high", "less_p", "less_holds")


@dataclass
class Less:
    """The difference from the first row of a cell's section: paired over images (:mod:`filip.report.differences`).

    effect, interval (95 %): fractions. p: after Holm's correction over the primary columns; None for another column.
    holds: significant at 5 %, over enough trainings.
    """

    effect: float
    interval: list[float]
    p: float | None
    holds: bool


OF_PRIMARY = (
    "(p < 0.05 after Holm's correction over the primary columns, which the study names in `headline`, over "
    f"{FEWEST} trainings or more)"
)
LEADING = "ahead of every other row of the section by a difference that holds"
PAIRED = (
    "With sign: the difference from the first row of the section, paired over the same images (and seeds), with its "
    f"95 % interval. Bold: {LEADING} {OF_PRIMARY}."
)
TOO_FEW = f"Nothing is marked for fewer than {FEWEST} trainings."
DAGGER = f"†: the difference from the first row of the section holds {OF_PRIMARY}."
BOLD = f"Bold: {LEADING}."


@dataclass
class Cell:
    """One figure, in the unit of its column; accuracies, recalls and chance are fractions in 0..1.

    seeds, std: number of repetitions that were averaged, and their standard deviation.
    reason: why value is None, or is not shown.
    less: its difference from the first row of the section, where there are outcomes per image.
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

    @property
    def number(self) -> float | None:
        """Return the value where it is a number."""
        return self.value if isinstance(self.value, int | float) else None

    def record(self) -> dict[str, Any]:
        """Return the cell as a part of a line of the CSV."""
        body = (self.value, self.chance, self.n, *(self.ci95 or (None, None)), self.seeds, self.std, self.reason)
        less = (self.less.effect, *self.less.interval, self.less.p, self.less.holds) if self.less else (None,) * 5
        return dict(zip((*BODY, *LESS, "leads"), (*body, *less, self.leads), strict=True))


@dataclass
class Column:
    """A column. unit: percent (a fraction shown times 100), seconds, mb, ratio, number or text.

    outcomes: "<group>/<measure>" of the evaluation's outcomes that the column is the mean of; none: not compared.
    headline: whether it is among the findings of a study.
    """

    key: str
    title: str
    group: str = ""
    unit: str = "percent"
    outcomes: list[str] = field(default_factory=list)
    headline: bool = False

    @property
    def heading(self) -> str:
        """Return the column's name where it is alone, with its group."""
        distinct = self.group and self.group != self.title
        return f"{self.group}: {self.title}" if distinct else self.title


@dataclass
class Row:
    """A row. kind: ours (measured here), peer (another model, measured here) or paper (published)."""

    label: str
    kind: str
    cells: dict[str, Cell]
    section: str = ""
    run: str | None = None
    run_id: str | None = None
    commit: str | None = None

    @property
    def origin(self) -> str:
        """Return where the row comes from: its run and commit and the number of its seeds, or that it was published."""
        if self.kind == "paper":
            return "published"
        commit = f"@{short_commit(self.commit)}" if self.commit else ""
        seeds = max((cell.seeds for cell in self.cells.values()), default=1)
        repeated = f", mean of {seeds} seeds" if seeds > 1 else ""
        return f"{self.run_id or self.run or ''}{commit}{repeated}"


@dataclass
class Table:
    """A table: columns, rows and the notes below it. Every row has a cell in every column."""

    name: str
    title: str
    columns: list[Column]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        missing = Cell(reason="not reported")
        # rows of its own: a table of fewer columns takes none from the table that it was made of
        self.rows = [
            replace(row, cells={c.key: replace(row.cells.get(c.key, missing)) for c in self.columns})
            for row in self.rows
        ]

    @property
    def sections(self) -> list[str]:
        return list(dict.fromkeys(row.section for row in self.rows))

    def records(self) -> list[dict[str, Any]]:
        """Return a line of the CSV for each cell."""
        rows = []
        for row in self.rows:
            origin = (self.name, row.section, row.label, row.kind, row.run, row.run_id, row.commit)
            for column in self.columns:
                head = dict(zip(HEAD, (*origin, column.key, column.unit), strict=True))
                rows.append({**head, **row.cells[column.key].record()})
        return rows

    def numbers(self, what: str = "value") -> pd.DataFrame:
        """Return one figure of all cells, by its name in the CSV: lines x columns, NaN where there is no number."""
        figures = [[cell.record()[what] for cell in row.cells.values()] for row in self.rows]
        numeric = [[value if isinstance(value, int | float) else np.nan for value in line] for line in figures]
        return pd.DataFrame(numeric, columns=[column.key for column in self.columns], dtype=float)

    def as_json(self) -> dict[str, Any]:
        """Return plain data, as in ``tables.json``."""
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> Table:
        """Return the table from which ``as_json`` made ``content``."""

        def cell(content: dict[str, Any]) -> Cell:
            return Cell(**{**content, "less": Less(**content["less"]) if content.get("less") else None})

        rows = [
            Row(**{**row, "cells": {key: cell(found) for key, found in row["cells"].items()}})
            for row in content["rows"]
        ]
        columns = [Column(**column) for column in content["columns"]]
        return Table(content["name"], content["title"], columns, rows, content["notes"])

    def interval_notes(self) -> list[str]:
        """Describe the intervals of the cells; nothing if there is none."""
        cells = [cell for row in self.rows for cell in row.cells.values() if cell.ci95 and row.kind != "paper"]
        notes = []
        if any(cell.seeds == 1 for cell in cells):
            notes.append("Intervals of one training: 95 % by bootstrap over the test images.")
        if several := sorted({cell.seeds for cell in cells if cell.seeds > 1}):
            counts = " or ".join(str(n) for n in several)
            notes.append(
                f"Rows of {counts} seeds: the mean over the trainings, and the 95 % interval of that mean (Student's t "
                "over trainings and test images)."
            )
        return notes

    def _paper_notes(self, notes: Sequence[str]) -> list[str]:
        """Return the notes that hold where there are neither intervals nor differences."""
        left_out = [*self.interval_notes(), PAIRED, TOO_FEW]
        shown = [note for note in notes if note not in left_out]
        cells = [cell for row in self.rows for cell in row.cells.values()]
        shown += [DAGGER] if any(cell.less and cell.less.holds for cell in cells) else []
        return shown + ([BOLD] if any(cell.leads for cell in cells) else [])

    def grid(self, notes: Sequence[str] | None = None, paper: bool = False) -> Grid:
        """Return the printed table, with ``notes`` below it (None: the table's).

        Next to a value is its interval, and below each row are the differences from the first one. For a paper, a
        dagger marks the values whose difference holds instead.
        """
        rows, columns = self.rows, self.columns
        lines = []
        for label, key, write in (("n", "n", "{:,}".format), ("chance", "chance", chance_text)):
            measured = [[row.cells[column.key] for row in rows if row.kind != "paper"] for column in columns]
            # the same for every row measured here
            common = [next((getattr(c, key) for c in cells if c.chance is not None), None) for cells in measured]
            if any(chance is not None for chance in common):
                cells = [Shown() if chance is None else Shown(write(chance)) for chance in common]
                lines.append(Line(label, cells, kind="common"))
        first: dict[str, Row] = {}
        for row in sorted(rows, key=lambda row: self.sections.index(row.section)):
            base = first.setdefault(row.section, row)
            # one of our rows may have the same label
            ambiguous = row.kind == "paper" and not row.section.startswith("published")
            label = row.label + (" (published)" if ambiguous else "")
            cells = [_shown(row.cells[column.key], column, not paper) for column in columns]
            lines.append(Line(label, cells, row.section, row.kind, row.origin))
            gains = [row.cells[column.key].less for column in columns]
            for shown, less in zip(cells, gains, strict=True):
                shown.text += "†" if less and less.holds and paper and shown.text else ""
            if any(gains) and not paper:
                cells = [difference(less.effect, less.interval, less.holds) if less else Shown() for less in gains]
                lines.append(Line(f"less {base.label}", cells, row.section, "difference"))
        origin_of = {row.label: row.origin for row in rows if row.kind != "paper" and row.run_id}
        origins = "; ".join(f"{label}: {where}" for label, where in origin_of.items() if where)
        below = list(self.notes if notes is None else notes)
        if paper:
            below = self._paper_notes(below)
        elif origins:
            below.append(f"Runs: {origins}")
        heads = [Head(column.title, column.group) for column in columns]
        return Grid(heads, lines, self.title, below, name=self.name, records=self.records())


def _shown(cell: Cell, column: Column, with_interval: bool) -> Shown:
    if cell.value is None or cell.reason:
        return Shown(reason=cell.reason or "not reported")
    ends = interval_text(*cell.ci95) if with_interval and cell.ci95 and column.unit == "percent" else ""
    return Shown(value_text(cell.value, column.unit), ends, cell.leads)


def difference(effect: float, interval: Sequence[float], holds: bool) -> Shown:
    """Return a difference with its interval, in points, for print."""
    tone = ("up" if effect > 0 else "down") if holds else ""
    return Shown(_minus(f"{100 * effect:+.1f}"), interval_text(*interval), tone=tone)


def interval_text(low: float, high: float) -> str:
    """Return an interval of fractions in percent."""
    return _minus(f"[{100 * low:.1f}, {100 * high:.1f}]")


def _minus(text: str) -> str:
    return text.replace("-", "−")


def value_text(value: float | str | None, unit: str = "percent") -> str:
    """Return a value rounded as its unit is usually printed; "" if there is none."""
    if value is None or isinstance(value, str):
        return value or ""
    formats: dict[str, Callable[[float], str]] = {
        "percent": lambda v: f"{100 * v:.1f}",
        "seconds": lambda v: f"{v:#.3g}".rstrip("."),
        "mb": lambda v: f"{v:,.0f}",
        "ratio": lambda v: f"{v:.2f}",
        "number": lambda v: f"{v:g}",
        "text": str,
    }
    return formats[unit](value)


def chance_text(chance: float) -> str:
    """Return chance in percent, with enough digits to see a small one."""
    percent = 100 * chance
    return f"{percent:.1f}" if percent >= 1 else f"{percent:.2g}"


def short_commit(commit: str) -> str:
    """Return the first eight digits, with the ``+`` that marks a working tree that differed from the commit."""
    return commit[:8] + ("+" if commit.endswith("+") else "")


def combine(cells: list[Cell]) -> Cell:
    """Average repetitions with other seeds; the interval is then Student's t over trainings and test images.

    Repetitions without a value are left out; one alone is returned as it is.
    """
    measured = [cell for cell in cells if cell.number is not None]
    if len(measured) <= 1:
        return measured[0] if measured else (cells[0] if cells else Cell(reason="not run"))
    values = [float(cell.number) for cell in measured if cell.number is not None]
    over_images = statistics.fmean((c.ci95[1] - c.ci95[0]) / 2 / 1.96 if c.ci95 else 0.0 for c in measured)
    low, high, _ = over_trainings(np.array(values)[:, None], np.array([over_images**2]))
    if all(cell.ci95 for cell in measured):  # a share ends at 0 and 1
        low, high = np.clip([low, high], 0, 1)
    mean, std = statistics.fmean(values), statistics.stdev(values)
    return Cell(mean, measured[0].chance, measured[0].n, [float(low[0]), float(high[0])], len(values), std)


def average(cells: list[Cell], what: str) -> Cell:
    """Return the plain mean over benchmarks; empty if one of them is, as means over different ones do not compare."""
    if not cells:
        return Cell(reason=f"no {what}")
    if missing := [cell for cell in cells if cell.number is None]:
        return Cell(reason=missing[0].reason or f"not all {what} run")
    chances = [cell.chance for cell in cells if cell.chance is not None]
    counts = [cell.n for cell in cells if cell.n is not None]
    # This counts as if no image were in two of them: the squares of the half widths add. Where there are outcomes,
    # filip.report.tables.compared replaces this interval by one that draws shared images together.
    halves = [(c.ci95[1] - c.ci95[0]) / 2 for c in cells if c.ci95]
    mean = statistics.fmean(cell.number for cell in cells if cell.number is not None)
    half = math.sqrt(sum(h * h for h in halves)) / len(cells) if len(halves) == len(cells) else None
    return Cell(
        mean,
        statistics.fmean(chances) if len(chances) == len(cells) else None,
        sum(counts) if len(counts) == len(cells) else None,
        [mean - half, mean + half] if half is not None else None,
    )


def published_cell(value: float | None) -> Cell:
    """Return a percentage from a paper as a fraction."""
    return Cell(reason="not reported") if value is None else Cell(value / 100)


def text_cell(value: Any) -> Cell:
    return Cell(reason="does not apply") if value is None else Cell(str(value))
