"""Figures: each is written, shows the data it was given, and says so when there is none."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from filip.command import run_command
from filip.report import plots
from filip.report.build import build_tables, load_published
from filip.report.figures import Figures, main, read_log
from filip.report.preview import augmentation_sheet, read_samples
from filip.report.study import Results, load_study
from tests.report.results import FUNNEL, STUDY, recalls, write_results

EVAL = Path(__file__).parents[2] / "eval"


@pytest.fixture
def folder(tmp_path) -> Path:
    write_results(tmp_path / "small")
    return tmp_path / "small"


def common(folder: Path) -> list[str]:
    return [
        f"results={folder}",
        f"out_dir={folder / 'f'}",
        f"cards={EVAL}",
        f"published={EVAL / 'published.yaml'}",
    ]


def test_the_command_writes_every_figure(folder):
    run_command(main, Figures, argv=[*common(folder), f"study={folder / 'study.json'}", "vector=true"])
    names = [
        "loss_curves",
        "funnel",
        "augmentation",
        "component_ablation",
        "efficiency",
        "recall",
        "confusion",
    ]
    written = {p.name for p in (folder / "f").iterdir()}
    assert written == {f"{n}.png" for n in names} | {f"{n}.svg" for n in names if n != "augmentation"}
    for name in names:
        pixels = np.asarray(Image.open(folder / "f" / f"{name}.png").convert("L"))
        assert min(pixels.shape) > 150 and pixels.std() > 5  # there is something on it


def test_figures_of_a_study_that_has_not_run_yet(tmp_path):
    study = EVAL.parent / "workflow" / "config" / "demo.yaml"
    run_command(main, Figures, argv=[*common(tmp_path), f"study={study}"])
    assert (tmp_path / "f" / "loss_curves.png").is_file() and (tmp_path / "f" / "augmentation.png").is_file()


def test_curves_are_the_log(folder):
    lines = read_log(folder / "runs" / "clip-00c0ffee" / "log.jsonl")
    assert [line["step"] for line in lines] == list(range(0, 20, 2))  # no event, no torn line
    axis = plots.curves({"clip": lines}).axes[0]
    raw, smooth = axis.lines
    assert raw.get_ydata() == pytest.approx([5 - s / 10 for s in range(0, 20, 2)])
    assert smooth.get_ydata() == pytest.approx(raw.get_ydata())  # a straight line stays one, to its ends
    plt.close("all")


def test_funnel_bars_are_shares_that_add_up():
    axis = plots.funnel(FUNNEL).axes[0]
    bars = [(bar.get_y(), bar.get_width()) for bar in axis.patches]
    for stage, y in zip(FUNNEL, sorted({y for y, _ in bars}), strict=True):
        widths = [width for where, width in bars if where == y]
        assert widths == pytest.approx(
            [stage["out"] / stage["in"], *(n / stage["in"] for n in stage["dropped"].values())]
        )
        assert sum(widths) == pytest.approx(1)
    said = " ".join(t.get_text() for t in axis.texts)
    assert "90 of 100 pairs kept (90.0 %)" in said and "not english" in said and "nothing dropped" in said
    plt.close("all")


def test_bars_have_the_values_and_the_intervals(folder):
    study, results = load_study(folder / "study.json"), Results(folder)
    table = build_tables(study, results, load_published(EVAL / "published.yaml"), EVAL)["component_ablation"]
    figure = plots.ablation_bars(table)
    axis = figure.axes[0]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([2.0, 5.0])
    assert "not run" in [t.get_text() for t in axis.texts]
    assert [t.get_text() for t in axis.get_yticklabels()] == [run["label"] for run in STUDY["runs"].values()]
    plt.close("all")


def test_recall_curves_show_chance():
    axis = plots.recall_curves({"a": recalls(0.05), "b": recalls(0.02)}, "x").axes[0]
    assert list(axis.lines[0].get_ydata()) == pytest.approx([5, 15, 20])
    assert list(axis.lines[-1].get_ydata()) == pytest.approx([100 * k / 1590 for k in (1, 5, 10)])
    plt.close("all")


def test_the_preview_reads_shards_and_side_cars(folder):
    base = folder / "data" / "demo"
    samples = read_samples(base / "shards", base / "captions", 3)
    assert [s.captions for s in samples] == [[f"text {i}", f"back-translated {i}"] for i in (1, 2, 3)]
    plain = read_samples(base / "shards", None, 2)
    assert plain[0].captions == ["text 0"]
    assert read_samples(base / "none", None, 2) == []
    first, again = (augmentation_sheet(samples, 24, augmented=3) for _ in range(2))
    assert first.tobytes() == again.tobytes()  # the same seed, the same augmentations
    assert augmentation_sheet(samples, 24, augmented=3, seed=1).tobytes() != first.tobytes()
