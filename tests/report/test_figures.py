"""Figures: each is written, shows the data it was given, and says so when there is none."""

from functools import partial

import pytest

from filip.report import plots
from filip.train.telemetry import read_log, score_on


def test_curves_are_the_log(folder):
    lines, _ = read_log(folder / "runs" / "clip-00c0ffee" / "log.jsonl")
    assert [line["step"] for line in lines] == list(range(0, 20, 2))  # no event, no torn line
    axis = plots.curves({"clip": [lines]}, {}).axes[0]
    raw, smooth = axis.lines
    assert raw.get_ydata() == pytest.approx([5 - s / 10 for s in range(0, 20, 2)])
    assert smooth.get_ydata() == pytest.approx(raw.get_ydata())  # a straight line stays one, to its ends


def test_learning_is_what_a_card_measured_while_training_by_step_and_by_the_seconds_of_the_steps():
    def log(seconds, recall):
        evaluated = {"eval/scenes_i2t_r1": recall, "eval/scenes_t2i_r1": recall + 0.2, "eval/other_i2t_r1": 1.0}
        clock = {"step": 50, "time/processor_seconds": seconds}
        return [clock | {"loss/total": 4.0}, clock | evaluated, {"step": 100, "loss/total": 3.0}]

    by_similarity = {"eval/scenes_image": 0.1, "eval/scenes_text": 0.2, "eval/scenes_mean": 0.7}
    assert score_on("scenes", by_similarity) == 0.7  # of a selection
    share = partial(score_on, "scenes")
    by_step, by_second = plots.learning({"clip": [log(8, 0.1), log(12, 0.3)]}, {}, share, "R@1").axes
    *seeds, mean = by_step.lines
    assert [list(line.get_ydata()) for line in seeds] == [[pytest.approx(20)], [pytest.approx(40)]]
    assert (list(mean.get_xdata()), list(mean.get_ydata())) == ([50], [pytest.approx(30)])
    assert list(by_second.lines[-1].get_xdata()) == [10]
    empty, _ = plots.learning({"clip": [[{"step": 50, "loss/total": 4.0}]]}, {}, share, "R@1").axes
    assert [text.get_text() for text in empty.texts] == ["no training log found"]
