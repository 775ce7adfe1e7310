"""The plots of the report. Each function takes plain data and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed, whatever the machine has

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from filip.report.table import Cell, Table

__all__ = ["ablation_bars", "confusions", "curves", "efficiency_scatter", "funnel", "recall_curves"]

COLOURS = ["#0b57a4", "#d1495b", "#2a9d8f", "#e9a03b", "#7b5ea7", "#5c677d", "#8ab17d", "#b56576"]
MUTED, LINE, INK = "#667085", "#d9dde4", "#1d2129"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "savefig.dpi": 150,
}


def _grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")
    return figure, list(axes.flat)


# ---- training ------------------------------------------------------------------------------------------

PANELS = [  # key in log.jsonl, title, factor
    ("loss/total", "Loss", 1.0),
    ("accuracy/i2t", "In-batch accuracy, image to text (%)", 100.0),
    ("accuracy/t2i", "In-batch accuracy, text to image (%)", 100.0),
    ("optimizer/logit_scale", "Logit scale", 1.0),
    ("optimizer/lr", "Learning rate", 1.0),
    ("speed/pairs_per_second", "Pairs per second", 1.0),
]


def curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Training curves of several runs. logs: {label: lines of log.jsonl, each with "step"}."""
    figure, axes = _grid(2, 3, 13, 6.6)
    for axis, (key, title, factor) in zip(axes, PANELS, strict=True):
        for number, (label, lines) in enumerate(logs.items()):
            points = [(line["step"], factor * line[key]) for line in lines if _number(line.get(key))]
            if not points:
                continue
            steps, values = np.array(points, dtype=float).T
            colour = COLOURS[number % len(COLOURS)]
            noisy = key.split("/")[0] in ("loss", "accuracy", "speed")
            if noisy:
                axis.plot(steps, values, color=colour, alpha=0.28, linewidth=1)
            axis.plot(steps, _smooth(values) if noisy else values, color=colour, linewidth=1.8, label=label)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(True, axis="y")
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(handles)))
    else:
        axes[0].text(0.5, 0.5, "no training log found", ha="center", color=MUTED, transform=axes[0].transAxes)
    return figure


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _smooth(values: np.ndarray, reach: int = 4) -> np.ndarray:
    """Centred running mean over up to ``reach`` neighbours on each side, fewer (but as many) at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    half = np.minimum(np.minimum(index, len(values) - 1 - index), reach)
    return (total[index + half + 1] - total[index - half]) / (2 * half + 1)


# ---- funnel --------------------------------------------------------------------------------------------


def funnel(stages: Sequence[Mapping[str, Any]]) -> Figure:
    """How many pairs each stage of each source kept, and why it dropped the others.

    stages: funnel fragments in order (stage, source, unit, in, out, dropped).
    """
    lines = [max(2.6, len(stage["dropped"]) + 0.9) for stage in stages] or [2.6]
    figure, (axis,) = _grid(1, 1, 12, 1.0 + 0.2 * sum(lines))
    middles = np.cumsum(lines) - np.array(lines) / 2
    for stage, y in zip(stages, middles, strict=False):
        _funnel_bar(axis, stage, float(y))
    names = [f"{_words(stage['stage'])}\n{stage.get('source', '')}" for stage in stages]
    axis.set_yticks(middles[: len(stages)], names)
    axis.set_ylim(sum(lines), 0)
    axis.set_xlim(0, 1.0)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25 %", "50 %", "75 %", "100 %"])
    axis.set_title("Data funnel: the share of each stage's input that went on, and why the rest did not")
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    return figure


def _funnel_bar(axis: Axes, stage: Mapping[str, Any], y: float) -> None:
    """One stage: what it kept in blue, what it dropped in shades of red, the reasons at the right."""
    whole = max(stage["in"], 1)
    kept = stage["out"] / whole
    axis.barh(y, kept, height=1.7, color=COLOURS[0])
    left = kept
    dropped = stage["dropped"]
    for shade, count in zip(np.linspace(0.9, 0.4, max(1, len(dropped))), dropped.values(), strict=False):
        axis.barh(y, count / whole, left=left, height=1.7, color=COLOURS[1], alpha=shade)
        left += count / whole
    said = f"{stage['out']:,} of {stage['in']:,} {stage.get('unit', 'pairs')} kept ({100 * kept:.1f} %)"
    inside = kept > 0.45
    x, colour = (0.012, "white") if inside else (kept + 0.012, INK)
    axis.text(x, y, said, va="center", color=colour, fontweight="bold")
    top = y - (len(dropped) - 1) / 2
    for number, (reason, count) in enumerate(dropped.items()):
        axis.text(1.07, top + number, f"{count:,}", va="center", ha="right", fontsize=8.5, color=INK)
        axis.text(1.08, top + number, _words(reason), va="center", fontsize=8.5, color=MUTED)
    if not dropped:
        axis.text(1.08, y, "nothing dropped", va="center", fontsize=8.5, color=MUTED)


def _words(name: str) -> str:
    return name.replace("_", " ")


# ---- tables as pictures --------------------------------------------------------------------------------


def ablation_bars(table: Table) -> Figure:
    """The component ablation: one panel per column, one bar per run, 95 % intervals, chance as a line."""
    columns = table.columns
    across = min(5, max(1, len(columns)))
    down = -(-len(columns) // across)
    rows = [row for row in table.rows if row.kind != "paper"]
    figure, axes = _grid(down, across, 2.7 * across + 1.6, 2.4 * down + 0.7)
    for axis, column in zip(axes, columns, strict=False):
        for number, row in enumerate(rows):
            cell = table.cell(row, column)
            if not isinstance(cell.value, int | float):
                axis.text(
                    0.5,
                    number,
                    "not run",
                    va="center",
                    ha="center",
                    color=MUTED,
                    fontsize=8,
                    style="italic",
                    transform=axis.get_yaxis_transform(),
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                )
                continue
            value = 100 * cell.value
            error = [[value - 100 * cell.ci95[0]], [100 * cell.ci95[1] - value]] if cell.ci95 else None
            axis.barh(
                number,
                value,
                xerr=np.clip(error, 0, None) if error else None,
                color=COLOURS[number % len(COLOURS)],
                height=0.68,
                error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
            )
            if cell.chance is not None:
                axis.axvline(100 * cell.chance, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)))
        axis.set_yticks(range(len(rows)), [row.label for row in rows] if axis in axes[::across] else [])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        heading = f"{column.group}\n{column.title}" if column.group else column.title
        axis.set_title(heading, fontsize=8.5)
        axis.set_xlim(left=0)
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.grid(True, axis="x")
        axis.set_axisbelow(True)
    for axis in axes[len(columns) :]:
        axis.set_visible(False)
    figure.supxlabel("percent; bar ends: 95 % interval; dashed: chance", fontsize=8.5, color=MUTED)
    return figure


def efficiency_scatter(table: Table) -> Figure:
    """Time against memory per iteration, relative to the first row, for ours and the published rows."""
    figure, (memory_axis, accuracy_axis) = _grid(1, 2, 12.5, 5.2)
    measure = next((column for column in table.columns if column.unit == "percent"), None)
    for kind, label, place in (("ours", "measured here", (7, 4)), ("paper", "published (8 V100)", (-7, 4))):
        colour = COLOURS[0] if kind == "ours" else COLOURS[1]
        rows = [row for row in table.rows if (row.kind == "paper") == (kind == "paper")]
        for axis, key, factor in (
            (memory_axis, "memory_ratio", 1.0),
            (accuracy_axis, measure and measure.key, 100.0),
        ):
            points = [
                (float(time), factor * float(value), row.label)
                for row in rows
                if isinstance(time := row.cells["time_ratio"].value, int | float)
                and isinstance(value := row.cells.get(str(key), Cell()).value, int | float)
            ]
            if points:
                axis.scatter(
                    [p[0] for p in points], [p[1] for p in points], color=colour, s=46, label=label, zorder=3
                )
            for time, value, name in points:
                axis.annotate(
                    name,
                    (time, value),
                    xytext=place,
                    textcoords="offset points",
                    ha="left" if place[0] > 0 else "right",
                    fontsize=7.5,
                    color=colour,
                )
    memory_axis.set_title("Memory against time, relative to the global loss")
    memory_axis.set_ylabel("memory, x first row")
    accuracy_axis.set_title("Accuracy of the trained runs against time")
    accuracy_axis.set_ylabel(f"{measure.title if measure else 'accuracy'}, %")
    for axis in (memory_axis, accuracy_axis):
        axis.set_xlabel("time per iteration, x first row")
        axis.margins(0.18)
        axis.grid(True)
        if axis.collections:
            axis.legend(loc="upper left")
        else:
            axis.text(0.5, 0.5, "not run yet", ha="center", color=MUTED, transform=axis.transAxes)
    return figure


def recall_curves(results: Mapping[str, Mapping[str, Any]], title: str) -> Figure:
    """Recall against k for several runs on one benchmark. results: {label: an entry of retrieval.json}."""
    figure, axes = _grid(1, 2, 10, 4.2)
    for axis, (way, meaning) in zip(axes, (("i2t", "image to text"), ("t2i", "text to image")), strict=True):
        for number, (label, found) in enumerate(results.items()):
            ks = [int(rank[1:]) for rank in found[way]]
            values = [100 * value for value in found[way].values()]
            colour = COLOURS[number % len(COLOURS)]
            axis.plot(ks, values, "o-", color=colour, label=label, linewidth=1.8)
            bounds = found.get("ci95", {}).get(way)
            if bounds:
                low, high = np.array([bounds[rank] for rank in found[way]]).T * 100
                axis.fill_between(ks, low, high, color=colour, alpha=0.13, linewidth=0)
        for found in list(results.values())[:1]:
            ks = [int(rank[1:]) for rank in found["chance"][way]]
            chance = [100 * value for value in found["chance"][way].values()]
            axis.plot(ks, chance, "--", color=MUTED, label="chance", linewidth=1)
        axis.set_title(f"{title}, {meaning}")
        axis.set_xlabel("k")
        axis.set_ylabel("recall at k, %")
        axis.set_ylim(bottom=0)
        axis.grid(True, axis="y")
    axes[0].legend(loc="upper left")
    return figure


def confusions(tasks: Mapping[str, Mapping[str, Any]], most: int = 12) -> Figure:
    """The most frequent mistakes of each classification task. tasks: {title: an entry of zero_shot.json}."""
    across = min(3, max(1, len(tasks)))
    down = -(-max(1, len(tasks)) // across)
    figure, axes = _grid(down, across, 5.2 * across, 0.6 + 3.2 * down)
    for axis, (title, task) in zip(axes, tasks.items(), strict=False):
        mistakes = (task.get("confused") or [])[:most]
        axis.barh(range(len(mistakes)), [times for *_, times in mistakes], color=COLOURS[1], height=0.7)
        names = [f"{_short(true)} → {_short(predicted)}" for true, predicted, _ in mistakes]
        axis.set_yticks(range(len(mistakes)), names, fontsize=7.5)
        axis.set_ylim(most - 0.4, -0.6)
        axis.set_title(f"{title}: {100 * task['value']:.1f} %")
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    figure.supxlabel("images of the first class that were taken for the second", fontsize=8.5, color=MUTED)
    return figure


def _short(text: str, limit: int = 26) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
