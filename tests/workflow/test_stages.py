"""How far the jobs of a run are: by their logs, by earlier runs, and what a person reads of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from workflow.stages import (
    Job,
    Stage,
    benchmark_of,
    log_lines,
    terminal_lines,
    times_table,
    usual_seconds,
    view,
    wall_left,
)


def write_benchmark(folder: Path, run: str, seconds: float, cpu: str = "NA") -> Path:
    file = folder / f"{run}.tsv"
    file.write_text(f"s\th:m:s\tcpu_time\n{seconds}\t0:00:01\t{cpu}\n")
    return file


def job(usual: float | None = None, log: Path | None = None, wildcards: str = "filip", started: float = 1000.0) -> Job:
    return Job("pretrain", wildcards, started, usual, log)


def test_a_job_is_as_long_as_it_was_before_and_others_as_the_mean_of_their_rule(tmp_path: Path) -> None:
    write_benchmark(tmp_path, "clip", 100.0)
    file = write_benchmark(tmp_path, "filip", 300.0, "250.5")
    usual = usual_seconds(f"{tmp_path}/{{run}}.tsv")
    assert usual == 200.0 and usual_seconds("") is None
    assert benchmark_of(file) == (300.0, 250.5) and benchmark_of(tmp_path / "none.tsv") is None
    assert usual_seconds(f"{tmp_path}/none/{{run}}.tsv") is None
    stage = Stage(3, usual, done=1, running={7: job(300.0)})
    found = view(stage, 1060.0)
    assert found.left == 240.0 + 200.0  # seconds of the one that runs, and of the one that does not yet
    assert found.share == pytest.approx((1 + 0.2) / 3) and found.longest == 240.0
    assert view(stage, 9999.0).share < 2 / 3  # it takes longer than it did: nearly full, not done


def test_what_a_job_reports_in_its_log_says_how_far_it_is(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("feature maps: 300 of 1,000 images,  5.00 images/s, 02:20 left\n")
    first_run = Stage(2, running={7: job(None, log)})
    found = view(first_run, 1060.0)
    assert found.share == pytest.approx(60 / 200 / 2) and found.left is None  # the one that waits is unknown
    assert found.jobs == ["filip 1:00  feature maps: 30 %, 300 of 1,000 images, 5.00 images/s, 2:20 left"]
    # what follows is known by the whole, unless it is the training that reports: nothing follows that
    assert view(Stage(1, running={7: job(500.0, log)}), 1060.0).left == 440.0
    log.write_text(log.read_text() + "training: 10 of 40 steps, 1.00 steps/s, 0:30 left, loss 4.0  lr 1\n")
    assert view(Stage(1, running={7: job(500.0, log)}), 1060.0).left == 30.0
    log.write_text("feature maps: 1,000 of 1,000 images,  5.00 images/s, 00:00 left\n")
    assert view(first_run, 1060.0).jobs == ["filip 1:00"]  # something else goes on


def test_trainings_side_by_side_have_a_line_each_and_all_fits_the_terminal(tmp_path: Path) -> None:
    stages = {"pretrain": Stage(2, 200.0, running={7: job(300.0), 8: job(200.0, wildcards="clip")}), "tables": Stage(1)}
    lines = terminal_lines(stages, 900.0, 1060.0, 2, 100, 40)
    assert lines[0].startswith("pretrain  ━") and lines[0].endswith("0/2  25 %, 6:20 left")
    assert lines[1:3] == ["          filip 1:00 of about 5:00", "          clip 1:00 of about 3:20"]
    assert lines[3].startswith("tables    ╌") and lines[3].endswith("0/1")
    # two cores, the longer of the two; tables unknown
    assert lines[4] == "0 of 3 jobs, 2:40, at least 4:00 left"
    assert all(len(line) <= 40 for line in terminal_lines(stages, 900.0, 1060.0, 2, 40, 40))
    many = {f"rule{n}": Stage(1) for n in range(60)} | {"now": Stage(1, running={1: job(None)})}
    shown = terminal_lines(many, 0.0, 1001.0, 2, 100, 24)
    assert len(shown) == 3 and shown[0].startswith("now")
    assert log_lines(stages, 900.0, 1060.0, 2) == [
        "0 of 3 jobs, 2:40, at least 4:00 left",
        "  pretrain filip 1:00 of about 5:00",
        "  pretrain clip 1:00 of about 3:20",
    ]


def test_what_is_left_is_shared_by_the_cores() -> None:
    stages = {"zero_shot": Stage(4, 30.0), "download": Stage(1, 50.0, threads=2)}
    views = {name: view(stage, 0.0) for name, stage in stages.items()}
    assert wall_left(stages, views, 2) == 60.0 + 50.0
    assert wall_left({"tables": Stage(1)}, {"tables": view(Stage(1), 0.0)}, 2) is None


def test_the_times_of_a_run_are_a_table() -> None:
    stages = {
        "demo_corpus": Stage(1, done=1, seconds=81.2, cpu_seconds=150.0),
        "pretrain": Stage(2, done=2, seconds=1200.0, cpu_seconds=None),
        "tables": Stage(1),
    }
    assert times_table(stages, 700.0) == [
        "stage        jobs  seconds  CPU seconds",
        "demo_corpus     1       81          150",
        "pretrain        2    1,200             ",
        "together 11:40; jobs that ran side by side count one by one",
    ]
