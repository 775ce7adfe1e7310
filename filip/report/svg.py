"""Drawings of the report's page as inline SVG, whose colours are the page's and follow light and dark."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from filip.report.findings import Compared
from filip.report.formats.text import less_text
from filip.report.looks import Look

ROW, HEAD = 24, 34  # height of a line, and of a group's heading
LETTER = 6.6  # average width of a letter at 13 px


@dataclass(frozen=True)
class _Layout:
    """Where things stand, in units of the drawing (pixels at full size)."""

    width: int
    labels: int  # width of the labels; 0: above the line
    values: int  # width of the figures at the right

    @property
    def row(self) -> int:
        return ROW if self.labels else 2 * ROW - 6


def forest(found: Sequence[Compared], looks: Mapping[str, Look], narrow: bool = False) -> str:
    """Differences with their intervals around zero, one line each, by group.

    Filled: it holds, in the colour of the run that is ahead. Hollow: it does not. narrow: labels above the lines.
    """
    lay = _Layout(360, 0, 112) if narrow else _Layout(1000, 370, 150)
    low, high, ticks = _axis(found)
    left, right = (lay.labels or 10) + 10, lay.width - lay.values

    def x(value: float) -> float:
        return left + (right - left) * (100 * value - low) / (high - low)

    parts: list[str] = []
    y, group = 6.0, ""
    for item in found:
        if item.group != group:
            group = item.group
            parts.append(f'<text x="0" y="{y + 20:g}" class="group">{html.escape(group)}</text>')
            y += HEAD
        parts.append(_line(item, looks, lay, x, y))
        y += lay.row
    grid = "".join(
        f'<line x1="{x(t / 100):.1f}" x2="{x(t / 100):.1f}" y1="{8 if t else 0}" y2="{y:g}" '
        f'class="{"grid" if t else "zero"}"/>'
        f'<text x="{x(t / 100):.1f}" y="{y + 16:g}" class="tick">{_signed(t)}</text>'
        for t in ticks
    )
    height = y + 24
    title = f"Paired differences in points: {sum(c.less.holds for c in found)} of {len(found)} hold"
    return (
        f'<svg class="forest {"narrow" if narrow else "wide"}" viewBox="0 0 {lay.width} {height:g}" '
        f'width="{lay.width}" role="img" aria-label="{title}" xmlns="http://www.w3.org/2000/svg">'
        f"{grid}{''.join(parts)}</svg>"
    )


def _line(
    item: Compared, looks: Mapping[str, Look], lay: _Layout, x: Callable[[float], float], y: float
) -> str:
    less = item.less
    ahead = item.row if less.effect > 0 else item.base
    number = looks.get(ahead.run or "", Look()).number
    kind = f'style="--c: var(--run{number})"' if less.holds else 'style="--c: var(--muted)"'
    middle = y + lay.row - ROW / 2
    low, high = (x(end) for end in less.interval)
    words = html.escape(_short(item.label, int((lay.labels or lay.width) / LETTER)))
    full = html.escape(f"{item.group}, {item.label}: {item.row.label} less {item.base.label}")
    label = (
        f'<text x="{lay.labels}" y="{middle + 4:g}" text-anchor="end">{words}</text>'
        if lay.labels
        else f'<text x="0" y="{y + 13:g}">{words}</text>'
    )
    return (
        f"<g {kind}><title>{full}</title>{label}"
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle:g}" y2="{middle:g}" class="reach"/>'
        f'<circle cx="{x(less.effect):.1f}" cy="{middle:g}" r="5" class="{"holds" if less.holds else "open"}"/>'
        f'<text x="{lay.width}" y="{middle + 4:g}" text-anchor="end" class="value">'
        f"{less_text(less).replace('-', '−')}</text></g>"
    )


def _axis(found: Sequence[Compared]) -> tuple[float, float, list[float]]:
    """Ends of the axis and its ticks, in points; zero is one of them."""
    ends = [100 * end for item in found for end in item.less.interval] or [-1.0, 1.0]
    low, high = min(0.0, *ends), max(0.0, *ends)
    span = max(high - low, 1.0)
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50) if span / s <= 7)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [step * n for n in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def _signed(value: float) -> str:
    return "0" if value == 0 else f"{value:+g}".replace("-", "−")


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1].rstrip() + "…"


def stage_bar(stages: Sequence[tuple[str, str, float]]) -> str:
    """Seconds of the stages as one bar. stages: (kind, name, seconds) in order; kind: data, train, eval or report."""
    total = sum(seconds for *_, seconds in stages) or 1.0
    parts, x = [], 0.0
    for number, (kind, name, seconds) in enumerate(stages):
        width = 1000 * seconds / total
        parts.append(
            f'<rect x="{x:.2f}" y="0" width="{max(width - 1, 0.5):.2f}" height="26" '
            f'class="stage {kind} {"odd" if number % 2 else "even"}">'
            f"<title>{html.escape(name)}: {duration(seconds)}</title></rect>"
        )
        x += width
    return (
        f'<svg class="stages" viewBox="0 0 1000 26" preserveAspectRatio="none" role="img" '
        f'aria-label="Time of each stage" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def duration(seconds: float) -> str:
    """``42 s``, ``6.2 min`` or ``3.1 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
