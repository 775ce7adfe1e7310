"""Figures: each is written, shows the data it was given, and says so when there is none."""

from functools import partial

import numpy as np
import pytest
import yaml
from PIL import Image

from filip.cli.command import run_command
from filip.common.errors import UserError
from filip.report import plots, table_plots
from filip.report.figures import Figures, main
from filip.train.telemetry import read_log, score_on
from tests.report.results import EVAL, STUDY, tables_of, write_tables
from workflow.study import WorkflowStudy

STUDIES = EVAL.parent / "workflow" / "config"
FIGURES = ["loss_curves", "funnel", "component_ablation", "efficiency", "recall", "confusion", "zero_shot"]


def test_the_command_writes_every_figure(folder):
    write_tables(folder)
    run_command(main, Figures, argv=[f"results={folder}", "png=true"])
    written = {p.name for p in (folder / "figures").iterdir()}
    assert written == {f"{n}.png" for n in FIGURES} | {f"{n}.svg" for n in FIGURES}
    for name in FIGURES:
        pixels = np.asarray(Image.open(folder / "figures" / f"{name}.png").convert("L"))
        assert min(pixels.shape) > 150 and pixels.std() > 5  # there is something on it


def test_a_study_that_has_not_run_yet_has_every_figure_that_the_workflow_waits_for(tmp_path):
    study = STUDIES / "demo.yaml"
    write_tables(tmp_path, f"study={study}")
    run_command(main, Figures, argv=[f"results={tmp_path}", f"study={study}"])
    assert {p.name for p in (tmp_path / "figures").iterdir()} == set(figures_of("demo"))


def test_the_demo_studies_together_have_every_figure():
    curve = {"curve": {"card": "demo_scenes_new", "every_steps": 50}}
    together = {*figures_of("demo"), *figures_of("demo_ablation"), *figures_of("demo", **curve)}
    assert together == {f"{name}.svg" for name in [*FIGURES, "learning"]}


def figures_of(study: str, **more: object) -> list[str]:
    return WorkflowStudy(yaml.safe_load((STUDIES / f"{study}.yaml").read_text()) | more).figures


def test_figures_before_the_tables_are_refused_with_the_command_that_is_missing(folder):
    with pytest.raises(UserError, match=r"no tables at .*python -m filip\.report\.tables results="):
        main(Figures(results=str(folder)))


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


def test_the_ablation_is_a_line_per_column_with_the_values_and_the_intervals(folder):
    table = tables_of(folder)["component_ablation"]
    (axis,) = table_plots.benchmark_dots(table, {}).axes
    dots = {line.get_label(): line.get_xdata() for line in axis.lines if not line.get_label().startswith("_")}
    # the other was not run
    assert list(dots) == ["baseline (CLIP)", STUDY["runs"]["filip"]["label"], "chance"]
    assert dots["baseline (CLIP)"][:2] == pytest.approx([2.0, 6.0])
    bars = [line.get_xdata() for line in axis.lines if len(line.get_xdata()) == 2]
    assert list(bars[0]) == pytest.approx([1.5, 2.5]) and len(bars) == 2 * len(table.columns)
    heads = [label.get_text() for label in axis.get_yticklabels()]
    assert heads[0] == "Fluent emoji, image → text: R@1" and len(set(heads)) == len(table.columns)


def test_recall_curves_show_every_benchmark_with_its_chance(folder):
    table = tables_of(folder)["retrieval"]
    to_text, to_image = table_plots.recall_curves(table, {}).axes
    assert to_text.get_title("left") == "Fluent emoji, image → text"
    assert to_image.get_title("left") == "Fluent emoji, text → image"
    shown = [line for line in to_text.lines if not line.get_label().startswith("_")]  # without the bars' ends
    by_label = {line.get_label(): line.get_ydata() for line in shown}
    assert list(by_label) == [*(row.label for row in table.rows), "chance"]
    assert list(by_label["baseline (CLIP)"]) == pytest.approx([2, 6, 8])
    assert list(to_image.lines[0].get_ydata()) == pytest.approx([1.8, 5.4, 7.2])
    assert list(by_label["chance"]) == pytest.approx([100 * k / 1590 for k in (1, 5, 10)])


def test_efficiency_has_each_row_that_was_measured_once_and_noise_does_not_fill_the_panel(folder):
    table = tables_of(folder)["efficiency_ablation"]
    figure = table_plots.efficiency_scatter(table, {})
    memory, accuracy, _ = figure.axes
    points = [tuple(mark.get_offsets()[0]) for mark in memory.collections]
    assert points[:2] == [(1.0, 1.0), (pytest.approx(1.5), pytest.approx(1.5))] and len(points) == 2 + 6
    assert "mean of 2 tasks" in accuracy.get_ylabel()
    low, high = accuracy.get_xlim()
    assert low <= 0.8 and high >= 1.25
    named = [text.get_text() for text in memory.texts]
    assert len(named) == len(set(named)) == 8 and "late* (paper)" in named and "gone" not in named
