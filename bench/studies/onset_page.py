"""Table and figure of the study "onset": from records/onset into docs/token_wise.md and docs/images/onset.svg."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy.special import stdtrit

from bench.readme import put_on_page
from filip.errors import UserError
from filip.files import replacing
from filip.report.differences import FEWEST, holm, over_trainings
from filip.report.plots import INK, MUTED, grid

PAGE, FIGURE = Path("docs/token_wise.md"), Path("docs/images/onset.svg")
MARKS = ("<!-- onset:begin -->", "<!-- onset:end -->")
SEARCH = (100, 101)  # seeds that choose a rate and are not reported
PASSES = 20.0  # percent
SMOOTH = "#b4603f"
COLOURS = {  # only these rows are drawn: more lines could not be told apart
    "hard": INK,
    "smooth 0.05": SMOOTH,
    "top 2": "#4a6b8a",
    "annealed": "#7a9a3a",
    "softmax 0.05": "#8a5fa0",
    "softmax 1": "#c3abd0",
    "smooth 1": "#c9b458",
}

Point = dict[str, Any]


@dataclass
class Curves:
    """The trainings of a row at its rate with a number of steps: the points of each seed, in the order of steps."""

    row: str
    steps: int
    rate: str
    searched: list[str]  # the rates that were tried
    seeds: dict[int, list[Point]]


def write_page(folder: Path) -> None:
    """Write the table between the marks of the page, and the figure."""
    rows = read(folder)
    if not rows:
        raise UserError(f"{folder} holds no training yet: python -m bench.studies.onset")
    lengths = [[one for one in rows if one.steps == steps] for steps in sorted({one.steps for one in rows})]
    block = "\n\n".join(f"{table(own)}\n\n{differences(own)}" for own in lengths)
    put_on_page(PAGE, block, MARKS)
    draw(lengths)


def read(folder: Path) -> list[Curves]:
    """Return the reported trainings of each row and length at the rate that the row's search chose, hard first."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    rows = []
    for row, steps in dict.fromkeys((one["row"], one["steps"]) for one in found):
        own = [one for one in found if one["row"] == row]
        searched = sorted({one["rate"] for one in own if one["seed"] in SEARCH}, key=float)
        rate = max(searched, key=lambda r: _searched(own, r)) if searched else own[0]["rate"]
        seeds = {
            one["seed"]: one["points"]
            for one in own
            if (one["rate"], one["steps"]) == (rate, steps) and one["seed"] not in SEARCH
        }
        if seeds:
            rows.append(Curves(row, steps, rate, searched, seeds))
    return sorted(rows, key=lambda one: (one.row != "hard", one.row, one.steps))


def _searched(own: list[dict[str, Any]], rate: str) -> float:
    return fmean(mean_recall(one["points"][-1]) for one in own if one["rate"] == rate and one["seed"] in SEARCH)


def mean_recall(point: Point, by: str = "hard") -> float:
    """Return the mean of both directions at a point, in percent."""
    return fmean(point[by].values())


def passing(points: list[Point], along: str) -> float:
    """Return the steps or seconds at which the recall passes PASSES, interpolated between measurements; inf: never."""
    before = {along: 0.0, "recall": 0.0}
    for point in points:
        here = {along: float(point[along]), "recall": mean_recall(point)}
        if here["recall"] >= PASSES:
            share = (PASSES - before["recall"]) / (here["recall"] - before["recall"])
            return before[along] + share * (here[along] - before[along])
        before = here
    return math.inf


def at_seconds(points: list[Point], seconds: float) -> float:
    """Return the recall after so many processor seconds, interpolated between measurements; NaN beyond the last."""
    before = (0.0, 0.0)
    for point in points:
        here = (float(point["seconds"]), mean_recall(point))
        if here[0] >= seconds:
            return before[1] + (seconds - before[0]) / (here[0] - before[0]) * (here[1] - before[1])
        before = here
    return math.nan


Column = tuple[str, Callable[[list[Point]], float]]


def compared(rows: list[Curves]) -> list[Column]:
    """Return the columns in which rows of one length are compared with the hard maximum."""
    equal = min(points[-1]["seconds"] for one in rows for points in one.seeds.values())
    return [
        (f"step at {PASSES:.0f} %", lambda p: passing(p, "step")),
        (f"CPU seconds at {PASSES:.0f} %", lambda p: passing(p, "seconds")),
        (f"R@1 after {equal:.0f} CPU seconds", lambda p: at_seconds(p, equal)),
        (f"R@1 after {rows[0].steps:,} steps", lambda p: mean_recall(p[-1])),
    ]


def table(rows: list[Curves]) -> str:
    """Return the Markdown table of the trainings of one length: a row for each maximum."""
    columns: list[Column] = [
        *compared(rows),
        ("the same, scored smooth", lambda p: mean_recall(p[-1], "smooth")),
        ("CPU seconds", lambda p: p[-1]["seconds"]),
        ("scale", lambda p: p[-1]["scale"]),
        ("Gini of patches", lambda p: 100 * p[-1]["gini"]["patches"]),
    ]
    head = ["maximum in training", "rate", "seeds", *(title for title, _ in columns)]
    lines = [f"| {' | '.join(head)} |", f"| --- | --- | ---: {'| ---: ' * len(columns)}|"]
    for one in rows:
        rate = f"{one.rate} of {', '.join(one.searched)}" if len(one.searched) > 1 else f"{one.rate}, not searched"
        cells = [with_interval(value(points) for points in one.seeds.values()) for _, value in columns]
        lines.append(f"| {one.row} | {rate} | {len(one.seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(rows: list[Curves]) -> str:
    """Return the Markdown table of what each row has over the hard maximum: a paired t over the seeds of both.

    A star stands where p < 0.05 after Holm's correction for all cells of the table.
    """
    columns = compared(rows)
    hard = next(one for one in rows if one.row == "hard")
    cells: dict[tuple[str, str], tuple[float, float, float]] = {}
    for one in rows:
        shared = [seed for seed in one.seeds if seed in hard.seeds]
        for title, value in columns:
            pairs = np.array([[value(one.seeds[seed]) - value(hard.seeds[seed])] for seed in shared])
            if one is not hard and len(shared) >= FEWEST and np.isfinite(pairs).all():
                found = over_trainings(pairs, np.zeros(1), np.ones(1))
                low, high, p = (float(value[0]) for value in found)
                cells[one.row, title] = low, high, p
    corrected = dict(zip(cells, holm([p for _, _, p in cells.values()]), strict=True))
    lines = [f"| less the hard maximum | {' | '.join(title for title, _ in columns)} |"]
    lines.append(f"| --- {'| ---: ' * len(columns)}|")
    for one in rows:
        if one is not hard:
            shown = []
            for title, _ in columns:
                low, high, _ = cells.get((one.row, title), (math.nan,) * 3)
                star = "*" if corrected.get((one.row, title), 1.0) < 0.05 else ""
                shown.append("–" if math.isnan(low) else f"{(low + high) / 2:+.1f} [{low:.1f}, {high:.1f}]{star}")
            lines.append(f"| {one.row} | {' | '.join(shown)} |")
    return "\n".join(lines)


def with_interval(values: Iterable[float]) -> str:
    """Return the mean with half the width of its 95 % interval (Student's t); – if a training has no value."""
    found = list(values)
    if not all(math.isfinite(value) for value in found):
        reached = sum(math.isfinite(value) for value in found)
        return f"{reached} of {len(found)}"
    if len(found) < 3:
        return f"{fmean(found):.1f}"
    half = float(stdtrit(len(found) - 1, 0.975)) * stdev(found) / math.sqrt(len(found))
    return f"{fmean(found):.1f} ±{half:.1f}"


def draw(lengths: list[list[Curves]]) -> None:
    """Draw recall against steps and against CPU seconds, a line for each length: the mean of the seeds, and each."""
    figure, axes = grid(len(lengths), 2, 11, 3.8 * len(lengths))
    labels = {"step": "steps of 128 pairs", "seconds": "CPU seconds"}
    for axis, (rows, along) in zip(axes, itertools.product(lengths, labels), strict=True):
        for one in (row for row in rows if row.row in COLOURS):
            colour = COLOURS[one.row]
            for points in one.seeds.values():
                recalls = [mean_recall(p) for p in points]
                axis.plot([p[along] for p in points], recalls, color=colour, lw=0.6, alpha=0.3)
            together = list(zip(*one.seeds.values(), strict=False))
            xs = [fmean(p[along] for p in points) for points in together]
            ys = [fmean(mean_recall(p) for p in points) for points in together]
            axis.plot(xs, ys, color=colour, lw=1.8, label=one.row)
        axis.axhline(PASSES, color=MUTED, lw=0.6, ls=":")
        axis.set(xlabel=labels[along], ylim=(0, None), xlim=(0, None))
        axis.grid(axis="y")
        axis.legend(fontsize=8)
    axes[0].set_title("R@1 in %, mean of both directions, by the maximum")
    with replacing(FIGURE) as part:
        figure.savefig(part, format="svg", metadata={"Date": None})
