"""Figures: each is written, shows the data it was given, and says so when there is none."""

import pytest

from filip.report import plots
from filip.train.telemetry import read_log


def test_curves_are_the_log(folder):
    lines, _ = read_log(folder / "runs" / "clip-00c0ffee" / "log.jsonl")
    assert [line["step"] for line in lines] == list(range(0, 20, 2))  # no event, no torn line
    axis = plots.curves({"clip": [lines]}, {}).axes[0]
    raw, smooth = axis.lines
    assert raw.get_ydata() == pytest.approx([5 - s / 10 for s in range(0, 20, 2)])
    assert smooth.get_ydata() == pytest.approx(raw.get_ydata())  # a straight line stays one, to its ends
