"""The plots of logs and funnels, and the style of all plots: functions of plain data that return a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from filip.report.style import Look

MUTED, LINE, INK = "#667085", "#d9dde4", "#1d2129"
KEPT, DROPPED = "#4a6b8a", "#b4603f"  # colours of the funnel, which no model has
MARKS = ("D", "s", "^", "v", "P", "X")  # marks of published rows, which have no colours
Looks = Mapping[str, Look]  # by run
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
        no_data(axes[0], "no training log found")
    return figure


def learning(
    logs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    looks: Looks,
    share: Callable[[Mapping[str, Any]], Any],
    title: str,
    clock: tuple[str, str] = ("time/processor_seconds", "processor seconds of the steps"),
) -> Figure:
    """Draw the found share in percent while models learn, over steps and over seconds; logs and looks as ``curves``.

    share: returns the share that a line has, in 0..1; None or NaN if it has none. clock: key and title of the seconds.
    """
    figure, axes = grid(1, 2, 9, 3.2)
    for label, seeds in logs.items():
        measured = [
            {line["step"]: line for line in lines if _number(share(line)) and clock[0] in line} for lines in seeds
        ]
        steps = sorted(set.intersection(*map(set, measured)))
        series = [{step: 100 * share(lines[step]) for step in steps} for lines in measured]
        seconds = {step: float(np.mean([lines[step][clock[0]] for lines in measured])) for step in steps}
        if steps:
            noisy, look = len(steps) > 20, looks.get(label, Look())
            _curve(axes[0], series, look, label, noisy)
            timed = [{seconds[step]: value for step, value in points.items()} for points in series]
            _curve(axes[1], timed, look, label, noisy)
    for axis, along in zip(axes, ("step", clock[1]), strict=True):
        axis.set_xlabel(along)
        axis.set_ylim(0, 100)
        axis.grid(True, axis="y")
    axes[0].set_ylabel(title)
    if axes[1].lines:
        axes[1].legend(loc="best")
    else:
        no_data(axes[0], "no training log found")
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


def no_data(axis: Axes, reason: str) -> None:
    """Write the reason into an empty panel."""
    axis.text(0.5, 0.5, reason, ha="center", color=MUTED, transform=axis.transAxes)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def _smooth(values: np.ndarray, reach: int = 4) -> np.ndarray:
    """Return the centred running mean over up to ``reach`` neighbours on each side, fewer (but as many) at the ends."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    half = np.minimum(np.minimum(index, len(values) - 1 - index), reach)
    return (total[index + half + 1] - total[index - half]) / (2 * half + 1)


# ---- funnel --------------------------------------------------------------------------------------------


def funnel(stages: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw how many pairs each stage of each source kept, and why it dropped the others.

    stages: funnel fragments in order (stage, source, unit, in, out, dropped).
    """
    lines = [max(2.6, len(stage["dropped"]) + 0.9) for stage in stages] or [2.6]
    figure, (axis,) = grid(1, 1, 12, 1.0 + 0.2 * sum(lines))
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
    """Draw one stage: kept pairs in blue, dropped ones in shades of red, the reasons on the right."""
    whole = max(stage["in"], 1)
    share = stage["out"] / whole
    axis.barh(y, share, height=1.7, color=KEPT)
    filled = share
    dropped = stage["dropped"]
    for shade, count in zip(np.linspace(0.9, 0.4, max(1, len(dropped))), dropped.values(), strict=False):
        axis.barh(y, count / whole, left=filled, height=1.7, color=DROPPED, alpha=shade)
        filled += count / whole
    counted = f"{stage['out']:,} of {stage['in']:,} {stage.get('unit', 'pairs')} kept ({100 * share:.1f} %)"
    inside = share > 0.45
    x, colour = (0.012, "white") if inside else (share + 0.012, INK)
    axis.text(x, y, counted, va="center", color=colour, fontweight="bold")
    top = y - (len(dropped) - 1) / 2
    for number, (reason, count) in enumerate(dropped.items()):
        axis.text(1.07, top + number, f"{count:,}", va="center", ha="right", fontsize=8.5, color=INK)
        axis.text(1.08, top + number, _words(reason), va="center", fontsize=8.5, color=MUTED)
    if not dropped:
        axis.text(1.08, y, "nothing dropped", va="center", fontsize=8.5, color=MUTED)


def _words(name: str) -> str:
    return name.replace("_", " ")
