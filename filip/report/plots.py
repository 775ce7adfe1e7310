"""The plots of the report: how runs learn, and the differences between them; and the style of all plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from filip.report.results import Results
from filip.report.style import Look
from filip.study import Study
from filip.train.telemetry import read_log

MUTED, LINE, INK = "#667085", "#d9dde4", "#1d2129"
MARKS = ("o", "D", "s", "^", "v", "P", "X")
Looks = Mapping[str, Look]  # by run
Logs = dict[str, list[list[dict[str, Any]]]]  # of each seed of a run, by the run's label
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
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "filip",  # equal results give equal files
}


def grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``width`` x ``height`` inches in the report's style, and its panels row by row."""
    matplotlib.rcParams.update(STYLE)
    # without pyplot, which would look for a display
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


# ---- training ------------------------------------------------------------------------------------------

PANELS = [  # key in log.jsonl, title, factor
    ("loss/total", "Loss", 1.0),
    ("accuracy/i2t", "In-batch accuracy, image to text (%)", 100.0),
    ("accuracy/t2i", "In-batch accuracy, text to image (%)", 100.0),
    ("optimizer/logit_scale", "Logit scale", 1.0),
    ("optimizer/lr", "Learning rate", 1.0),
    ("speed/pairs_per_second", "Pairs per second", 1.0),
]


def training_logs(study: Study, results: Results) -> Logs:
    """Return {label: the logs of a run and of its repetitions with other seeds}, for every run that has one."""
    logs = {}
    for run in [*study.runs, *study.fine_tunes]:
        if study.is_replica(run):
            continue
        folders = [results.run_dir(seed) for seed in study.replicas(run)]
        files = [folder / "log.jsonl" for folder in folders if folder]
        if found := [read_log(file)[0] for file in files if file.is_file()]:
            logs[study.label(run)] = found
    return logs


def curves(logs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], looks: Looks) -> Figure:
    """Draw the training curves of several runs.

    logs: {label: one list of log.jsonl's lines per seed, each with "step"}; looks: by label.

    With several seeds the mean is drawn at the steps that they all logged, and each seed faintly behind it.
    """
    figure, axes = grid(2, 3, 13, 6.6)
    for axis, (key, title, factor) in zip(axes, PANELS, strict=True):
        for label, seeds in logs.items():
            series = [
                points
                for lines in seeds
                if (points := {line["step"]: factor * line[key] for line in lines if _number(line.get(key))})
            ]
            if series:
                noisy = key.split("/")[0] in ("loss", "accuracy", "speed")
                _curve(axis, series, looks.get(label, Look()), label, noisy)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.grid(True, axis="y")
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(handles)))
    else:
        axes[0].text(0.5, 0.5, "no training log found", ha="center", color=MUTED, transform=axes[0].transAxes)
    return figure


def _curve(axis: Axes, series: Sequence[Mapping[Any, float]], look: Look, label: str, noisy: bool) -> None:
    """Draw one run: the mean over its seeds, smoothed where it is noisy, with the measured values faintly behind it."""
    if noisy or len(series) > 1:
        for points in series:
            axis.plot(list(points), list(points.values()), color=look.colour, alpha=0.28, linewidth=1)
    steps = sorted(set.intersection(*map(set, series))) or sorted(series[0])
    values = np.mean([[points.get(step, np.nan) for step in steps] for points in series], axis=0)
    label = f"{label} (mean of {len(series)} seeds)" if len(series) > 1 else label
    drawn = _smooth(values) if noisy else values
    axis.plot(steps, drawn, look.line, color=look.colour, linewidth=1.8, label=label)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _smooth(values: np.ndarray, reach: int = 4) -> np.ndarray:
    """Return the centred running mean over up to ``reach`` neighbours on each side, fewer (but as many) at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    half = np.minimum(np.minimum(index, len(values) - 1 - index), reach)
    return (total[index + half + 1] - total[index - half]) / (2 * half + 1)


# ---- tables -----------------------------------------------------------------------------------------------


def forest(found: pd.DataFrame, looks: Looks) -> Figure:
    """Draw differences with their 95 % intervals around zero, by area and measure (:mod:`filip.report.findings`).

    A measure's name is above its lines, one for each row, so that the plot is as narrow as a telephone. Filled: it
    holds, in the colour of the run that is ahead. Hollow: it does not.
    """
    marks = dict(zip(found["row"].unique(), MARKS * len(found), strict=False))
    lines = 0.9 * found["area"].nunique() + 0.85 * found.groupby(["area", "measure"]).ngroups + 0.4 * len(found)
    figure, (axis,) = grid(1, 1, 5, 1.2 + 0.24 * lines)
    y, area = 0.0, ""
    across = axis.get_yaxis_transform()
    for (group, measure), items in found.groupby(["area", "measure"], sort=False):
        if group != area:
            area = group
            axis.text(0, y, area, transform=across, va="center", fontsize=9, fontweight="bold", color=INK)
            y += 0.9
        axis.text(0, y, measure, transform=across, va="center", fontsize=8.5, color=INK)
        y += 0.5
        for item in items.itertuples():
            ahead = item.run if item.difference > 0 else item.base_run
            colour = looks.get(ahead, Look()).colour if item.holds else MUTED
            axis.plot([100 * item.difference_low, 100 * item.difference_high], [y, y], color=colour, linewidth=2)
            filled = colour if item.holds else "white"
            axis.plot(100 * item.difference, y, marks[item.row], mec=colour, mfc=filled, ms=6)
            y += 0.4
        y += 0.35
    axis.axvline(0, color=INK, linewidth=1)
    axis.set_yticks([])
    axis.set_ylim(y, -0.6)
    axis.xaxis.set_ticks_position("both")
    axis.tick_params(axis="x", labeltop=True)
    axis.set_xlabel("points, with 95 % intervals; filled: the difference holds")
    names = dict(zip(found["run"], found["row"], strict=True)) | dict(
        zip(found["base_run"], found["base"], strict=True)
    )
    entries = [
        Line2D([], [], color=looks.get(run, Look()).colour, lw=4, label=f"{name} ahead") for run, name in names.items()
    ]
    if len(marks) > 1:
        entries += [Line2D([], [], ls="", marker=mark, color=INK, label=row) for row, mark in marks.items()]
    figure.legend(handles=entries, loc="outside upper center", ncols=2, fontsize=8.5)
    axis.spines[["left"]].set_visible(False)
    axis.grid(True, axis="x")
    return figure
