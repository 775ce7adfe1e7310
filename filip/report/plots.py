"""The plot of the report: the differences between runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

MUTED, LINE, INK = "#667085", "#d9dde4", "#1d2129"
MARKS = ("o", "D", "s", "^", "v", "P", "X")
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


def forest(found: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """Draw differences with their 95 % intervals around zero, by area and measure (:mod:`filip.report.findings`).

    colours: by run.

    A measure's name is above its lines, one for each row, so that the plot is as narrow as a telephone. Filled: it
    holds, in the colour of the run that is ahead. Hollow: it does not.
    """
    marks = dict(zip(found["row"].unique(), MARKS * len(found), strict=False))
    lines = 0.9 * found["area"].nunique() + 0.85 * found.groupby(["area", "measure"]).ngroups + 0.4 * len(found)
    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(5, 1.2 + 0.24 * lines), layout="constrained")  # without pyplot, which wants a display
    axis = figure.subplots()
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
            colour = colours.get(ahead, INK) if item.holds else MUTED
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
    entries = [Line2D([], [], color=colours.get(run, INK), lw=4, label=f"{name} ahead") for run, name in names.items()]
    if len(marks) > 1:
        entries += [Line2D([], [], ls="", marker=mark, color=INK, label=row) for row, mark in marks.items()]
    figure.legend(handles=entries, loc="outside upper center", ncols=2, fontsize=8.5)
    axis.spines[["left"]].set_visible(False)
    axis.grid(True, axis="x")
    return figure
