"""The figure and the table of docs/quarter.md, from the study's record alone.

    python -m bench.answers

A row is the mean over its trainings; ± is half the 95 % interval over them, by Student's t. R@1 is the mean of both
directions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from bench.readme import put_on_page
from filip.cli.command import option, run_command
from filip.common.table_writer import Grid, Head, Line, Shown, render
from filip.report import plots

MARKS = ("<!-- quarter:begin -->", "<!-- quarter:end -->")


@dataclass
class Answers:
    records: str = option("records", "folder of the records")
    docs: str = option("docs", "folder of the pages; pictures go to its images/")


class Record:
    """The trainings of a study, by row and seed."""

    def __init__(self, path: Path) -> None:
        self.runs: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["runs"]

    def seeds(self, row: str) -> dict[str, Mapping[str, Any]]:
        """Return {what is added to the row's name: training}."""
        named = [name for name in sorted(self.runs) if re.fullmatch(rf"{re.escape(row)}(_s\d+)?", name)]
        return {name.removeprefix(row): self.runs[name] for name in named}

    def found(self, row: str, *endings: str) -> np.ndarray:
        """Return [trainings], in percent: the mean over what was found under keys with these endings."""
        values = [[v for k, v in run["found"].items() if k.endswith(endings)] for run in self.seeds(row).values()]
        return 100 * np.array([fmean(each) for each in values])

    def recall(self, row: str) -> np.ndarray:
        return self.found(row, "_new_i2t_r1", "_new_t2i_r1")

    def less(self, row: str, base: str) -> np.ndarray:
        """Return R@1 of a row less that of another, seed by seed."""
        ours, theirs = (dict(zip(self.seeds(each), self.recall(each), strict=True)) for each in (row, base))
        return np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def main(config: Answers) -> None:
    """Draw the figure and write the table."""
    record, docs = Record(Path(config.records) / "quarter.json"), Path(config.docs)
    quarter_figure(record).savefig(docs / "images/quarter.svg", format="svg", metadata={"Date": None})
    put_on_page(docs / "quarter.md", quarter_table(record), MARKS)


def with_interval(values: np.ndarray, signed: bool = False) -> str:
    """Return e.g. ``61.2 ±3.4``; without ± for one training."""
    mean = f"{values.mean():{'+' if signed else ''}.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ±{stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)):.1f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [Line(label, [Shown(cell) for cell in cells]) for label, *cells in rows]
    return render(Grid([Head(title) for title in head[1:]], lines, corner=head[0]), "markdown").rstrip()


def dots(axis: Axes, place: float, values: np.ndarray, colour: str) -> None:
    """Draw each training as a ring and the mean as a dot."""
    axis.plot(values, [place] * len(values), "o", color=colour, markersize=4, fillstyle="none", alpha=0.6)
    axis.plot(values.mean(), place, "o", color=colour, markersize=6)


def labelled(record: Record) -> dict[str, str]:
    return {row: record.runs[row]["label"] for row in record.runs if not re.search(r"_s\d+$", row)}


def quarter_figure(record: Record) -> Figure:
    rows = labelled(record)
    figure, (axis,) = plots.grid(1, 1, 9, 0.9 + 0.28 * len(rows))
    for place, row in enumerate(reversed(rows)):
        dots(axis, place, record.recall(row), "#b4603f" if row.startswith("all") else "#2f6690")
    axis.set_yticks(range(len(rows)), list(reversed(rows.values())))
    axis.set_xlabel("R@1 of 500 new pictures, % (chance 0.2)")
    return figure


def quarter_table(record: Record) -> str:
    rows = []
    for row, label in labelled(record).items():
        full = re.sub(r"^[a-z]+", "all", row)  # with as many pairs
        ways = [f"{record.found(row, f'_{way}_r1').mean():.1f}" for way in ("i2t", "t2i")]
        facts = [f"{record.runs[row]['config']['optimizer']['base_lr']:g}", str(len(record.seeds(row)))]
        less = "" if row == full else with_interval(record.less(row, full), signed=True)
        rows.append([label, *ways, *facts, less])
    head = ["image → text", "text → image", "base_lr", "trainings", "less all tokens, mean of both"]
    return markdown(["in training", *head], rows)


if __name__ == "__main__":
    run_command(main, Answers)
