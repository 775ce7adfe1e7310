"""The plots of tables: benchmarks, differences, efficiency, recall and confusions, as matplotlib figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

from filip.report.plots import INK, MARKS, MUTED, Looks, grid, no_data
from filip.report.style import Look
from filip.report.table import Column, Row, Table


def _percent(table: Table) -> dict[str, pd.DataFrame]:
    """Return value, interval and chance of all cells in percent, lines x columns; NaN where there is none."""
    return {what: 100 * table.numbers(what) for what in ("value", "ci95_low", "ci95_high", "chance")}


def _reach(value: Any, low: Any, high: Any) -> np.ndarray:
    """Return how far an interval reaches below and above a value, as matplotlib wants it."""
    return np.clip(np.array([value - low, high - value], dtype=float), 0, None)


def benchmark_dots(table: Table, looks: Looks) -> Figure:
    """Draw a line per column of ``table`` with a dot for each row; bars are 95 % intervals, ticks chance.

    Published rows are hollow marks, and are left out where they have none of the columns.
    """
    figure, (axis,) = grid(1, 1, 10, 1.4 + (0.3 + 0.04 * len(table.rows)) * max(3, len(table.columns)))
    percent = _percent(table)
    places = -np.arange(len(table.columns))
    shown = [(line, row) for line, row in enumerate(table.rows) if percent["value"].loc[line].notna().any()]
    ours = [line for line, row in shown if row.kind != "paper"]
    marks = iter(MARKS * len(shown))
    for line, row in shown:
        value, low, high, _ = (found.loc[line].to_numpy() for found in percent.values())
        if line not in ours:
            style: dict[str, Any] = {"mfc": "none", "mec": INK, "ms": 5.5, "label": f"{row.label} (published)"}
            there = ~np.isnan(value)
            axis.plot(value[there], places[there], next(marks), **style)
            continue
        look = looks.get(row.run or "", Look())
        y = places + 0.16 * ((len(ours) - 1) / 2 - ours.index(line))
        axis.plot([low, high], [y, y], color=look.colour, linewidth=1.3)
        filled = "none" if look.tuned else look.colour
        axis.plot(value, y, "o", mfc=filled, mec=look.colour, ms=5.5, label=row.label)
    if ours:
        chance = percent["chance"].loc[ours].bfill().iloc[0]
        axis.plot(chance, places, "|", color=MUTED, ms=11, label="chance")
    else:
        no_data(axis, "not run yet")
    titles = [column.title for column in table.columns]
    repeated = len(set(titles)) < len(titles)
    axis.set_yticks(places, [column.heading for column in table.columns] if repeated else titles)
    axis.set_xlabel("percent")
    axis.grid(True, axis="both")
    legend_of_all(figure, [axis], 3, "bars: 95 % intervals")
    return figure


def forest(found: pd.DataFrame, looks: Looks) -> Figure:
    """Draw differences with their 95 % intervals around zero, by area and measure (:mod:`filip.report.findings`).

    A measure's name is above its lines, one for each row, so that the plot is as narrow as a telephone. Filled: it
    holds, in the colour of the run that is ahead. Hollow: it does not.
    """
    found = found[found["difference"].notna()]
    marks = dict(zip(found["row"].unique(), ("o", *MARKS) * len(found), strict=False))
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


def efficiency_scatter(table: Table, looks: Looks) -> Figure:
    """Draw time, memory and accuracy of the rows against each other; time and memory relative to the block's first row.

    Filled circles are measured here, in the colour of the run with the same loss; hollow squares are published. Each
    point has its name next to it.
    """
    figure, axes = grid(1, 3, 14, 5.4)
    measure = [c for c in table.columns if c.unit == "percent"][-1]  # not the share of tokens
    names = {"time_ratio": "time per iteration, x first row", "memory_ratio": "memory, x first row"}
    names[measure.key] = f"accuracy: {measure.title}, %"
    values, rows = table.numbers(), table.rows
    values[measure.key] *= 100
    time, memory, accuracy = names
    for axis, (across, up) in zip(axes, ((time, memory), (time, accuracy), (memory, accuracy)), strict=True):
        points = values[[across, up]].dropna()
        for line, x, y in points.itertuples():
            ends = rows[line].cells[up].ci95 if up == accuracy else None
            _point(axis, rows[line], x, y, ends, looks)
        axis.set_title(f"{'Memory' if up == memory else 'Accuracy'} against {across.removesuffix('_ratio')}")
        axis.set_xlabel(names[across])
        axis.set_ylabel(names[up])
        if points.empty:
            no_data(axis, "not run yet")
            continue
        axis.margins(0.12)
        _ratio_axis(axis, "x", points[across])
        if up == memory:
            _ratio_axis(axis, "y", points[up])
        axis.grid(True)
    figure.supxlabel("filled: measured here; hollow squares: published", fontsize=8.5, color=MUTED)
    return figure


def _point(axis: Axes, row: Row, x: float, y: float, ends: list[float] | None, looks: Looks) -> None:
    paper = row.kind == "paper"
    colour = MUTED if paper else looks.get(row.run or "", Look()).colour
    name, ink = (f"{row.label} (paper)", MUTED) if paper else (row.label, INK)
    axis.annotate(name, (x, y), xytext=(6, 5), textcoords="offset points", fontsize=7.5, color=ink)
    style: dict[str, Any] = {"marker": "s" if paper else "o", "facecolors": "none" if paper else colour}
    axis.scatter([x], [y], s=58, edgecolors=colour, zorder=3, **style)
    if ends:
        reach = _reach(y, 100 * ends[0], 100 * ends[1])[:, None]
        axis.errorbar(x, y, reach, ecolor=colour, elinewidth=1.2, fmt="none")


def _ratio_axis(axis: Axes, which: str, values: pd.Series) -> None:
    """Draw a logarithmic axis in plain numbers, at least a quarter up and down: noise should look like noise."""
    low, high = min(0.8, 0.88 * values.min()), max(1.25, 1.14 * values.max())
    axis.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    scale = axis.xaxis if which == "x" else axis.yaxis
    scale.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5, 8.5) if high / low <= 4 else (1, 2, 5)))
    scale.set_major_formatter(FormatStrFormatter("%g"))
    scale.set_minor_locator(NullLocator())


def legend_of_all(figure: Figure, axes: Sequence[Axes], columns: int, title: str = "") -> None:
    """Put one legend below for the labels of all panels, each once."""
    entries = {text: mark for axis in axes for mark, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    if entries:
        figure.legend(
            handles=list(entries.values()),
            labels=list(entries),
            loc="outside lower center",
            ncols=min(columns, len(entries)),
            fontsize=8.5,
            title=title,
            title_fontsize=8.5,
        )


def recall_curves(table: Table, looks: Looks) -> Figure:
    """Draw recall against k for every run of a table: a row of panels per benchmark, both ways.

    Columns other than recall, ``<benchmark>_<direction>_r<k>``, are skipped. Bars are 95 % intervals, dashes chance.
    """
    panels: dict[str, list[Column]] = {}
    for column in table.columns:
        name, _, rank = column.key.rpartition("_r")
        if rank.isdigit():
            panels.setdefault(name, []).append(column)
    down = max(1, -(-len(panels) // 2))
    figure, axes = grid(down, 2, 11, 0.6 + 3.5 * down)
    for axis, columns in zip(axes, panels.values(), strict=False):
        _recall_panel(axis, table, columns, looks)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[-2:]:
        axis.set_xlabel("k")
    legend_of_all(figure, axes, 4, "bars: 95 % intervals")
    return figure


def _recall_panel(axis: Axes, table: Table, columns: list[Column], looks: Looks) -> None:
    """Draw recall against k on one benchmark, in one direction: a line per run, and chance."""
    ks = np.array([int(column.key.rpartition("_r")[2]) for column in columns])
    keys = [column.key for column in columns]
    percent = _percent(table)
    measured = [(line, row) for line, row in enumerate(table.rows) if row.kind != "paper"]
    measured = [(line, row) for line, row in measured if percent["value"].loc[line, keys].notna().all()]
    for number, (line, row) in enumerate(measured):
        value, low, high, _ = (found.loc[line, keys].to_numpy() for found in percent.values())
        look = looks.get(row.run or "", Look())
        shifted = ks + 0.13 * (number - (len(measured) - 1) / 2)  # so that bars do not overlap
        style: dict[str, Any] = {"color": look.colour, "label": row.label, "linewidth": 1.6, "markersize": 4}
        axis.plot(shifted, value, f"o{look.line}", **style)
        axis.errorbar(
            shifted, value, _reach(value, low, high), fmt="none", ecolor=look.colour, elinewidth=1.1, capsize=2
        )
    chance = percent["chance"].loc[[line for line, _ in measured], keys].to_numpy()
    if len(chance) and not np.isnan(chance[0]).any():
        axis.plot(ks, chance[0], ":", color=MUTED, label="chance")
    if not axis.lines:
        no_data(axis, "not run yet")
    axis.set_title(columns[0].group)
    axis.set_xticks(ks)
    axis.set_ylabel("recall at k, %")
    axis.set_ylim(bottom=0)
    axis.grid(True, axis="y")


def confusions(tasks: Mapping[str, Mapping[str, Any]], label: str, look: Look | None = None, most: int = 12) -> Figure:
    """Draw the most frequent mistakes of a run, by task. tasks: {title: an entry of zero_shot.json}; label: the run's.

    Where no pair of classes stands out (few images per class), the classes that are most often predicted wrongly.
    """
    across = min(3, max(1, len(tasks)))
    down = -(-max(1, len(tasks)) // across)
    figure, axes = grid(down, across, 5.2 * across, 0.6 + 3.5 * down)
    for axis, (title, task) in zip(axes, tasks.items(), strict=False):
        pairs = task.get("confused") or []
        counts = [(f"{_short(true)} → {_short(predicted)}", times) for true, predicted, times in pairs]
        meaning = "images of the first class taken for the second"
        if len({times for _, times in counts[:most]}) < 2 and task.get("overpredicted"):
            counts = [(_short(predicted, 40), times) for predicted, times in task["overpredicted"]]
            meaning = "images of other classes taken for this one"
        names, times = [name for name, _ in counts[:most]], [n for _, n in counts[:most]]
        axis.barh(range(len(names)), times, color=(look or Look()).colour, height=0.7)
        axis.set_yticks(range(len(names)), names, fontsize=7.5)
        axis.set_ylim(most - 0.4, -0.6)
        axis.set_title(f"{title}: {100 * task['value']:.1f} %")
        axis.set_xlabel(meaning, fontsize=8)
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    figure.suptitle(f"Most frequent mistakes of {label}" if tasks else "Mistakes: no run was evaluated yet")
    return figure


def _short(text: str, limit: int = 26) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
