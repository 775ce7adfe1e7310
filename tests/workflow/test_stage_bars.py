"""The bars of a run in a terminal: what they show, and that nothing is lost or added where nobody looks."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from workflow import stage_bars
from workflow.stage_bars import DEFAULT, Stage, StageBars, benchmark_seconds, clock, lines, show_stages


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> tuple[logging.Logger, io.StringIO]:
    """A logger with a handler that prints lines as Snakemake's does."""
    logger, text = logging.Logger("snakemake.logging"), io.StringIO()
    handler = logging.StreamHandler(text)
    handler.name = DEFAULT
    logger.addHandler(handler)
    monkeypatch.setattr(stage_bars, "_logger", lambda: logger)
    return logger, text


def event(logger: logging.Logger, kind: str, level: int = logging.INFO, **values: object) -> None:
    logger.log(level, f"a line about {kind}", extra={"event": kind, **values})


def job(
    logger: logging.Logger, number: int, rule: str, benchmark: str | None = None, **wildcards: str
) -> None:
    event(logger, "job_info", jobid=number, rule_name=rule, wildcards=wildcards, benchmark=benchmark)
    event(logger, "job_started", jobs=[number])


def write_benchmark(folder: Path, run: str, seconds: float) -> str:
    file = folder / f"{run}.tsv"
    file.write_text(f"s\th:m:s\n{seconds}\t0:00:01\n")
    return str(file)


def test_a_job_is_as_long_as_it_was_before_and_others_as_the_mean_of_their_rule(tmp_path: Path) -> None:
    write_benchmark(tmp_path, "clip", 100.0)
    write_benchmark(tmp_path, "filip", 300.0)
    usual = benchmark_seconds(f"{tmp_path}/{{run}}.tsv")
    assert usual == 200.0 and benchmark_seconds("") is None
    assert benchmark_seconds(f"{tmp_path}/none/{{run}}.tsv") is None
    stage = Stage(3, usual, done=1, running={7: ("filip", 1000.0, 300.0)})
    assert stage.left(1060.0) == 240.0 + 200.0  # of the one that runs, and of the one that does not yet
    assert stage.share(1060.0) == pytest.approx((1 + 0.2) / 3)
    assert stage.share(9999.0) < 2 / 3  # it takes longer than it did: nearly full, not done


def test_a_line_says_how_far_a_stage_is_and_fits_the_terminal() -> None:
    stages = {"pretrain": Stage(2, 200.0, 1, running={7: ("filip", 1000.0, 300.0)}), "tables": Stage(1)}
    first, second, whole = lines(stages, 900.0, 1060.0, 100, 40)
    assert first.startswith("pretrain  ━") and "1/2  filip 1:00 of about 5:00" in first
    assert second.startswith("tables    ╌") and "0/1" in second
    assert whole == "1 of 3 jobs, 2:40, about 4:00 of work left"
    assert all(len(line) <= 50 for line in lines(stages, 900.0, 1060.0, 50, 40))
    many = {f"rule{n}": Stage(1) for n in range(60)} | {"now": Stage(1, running={1: ("", 0.0, None)})}
    shown = lines(many, 0.0, 1.0, 100, 24)
    assert len(shown) == 2 and shown[0].startswith("now")
    assert [clock(s) for s in (42.9, 370, 11_100)] == ["0:42", "6:10", "3:05:00"]


def test_bars_replace_the_lines_of_a_run_and_leave_its_errors(
    printed: tuple[logging.Logger, io.StringIO], tmp_path: Path
) -> None:
    logger, text = printed
    drawn = io.StringIO()
    bars = StageBars(lambda rule: "", drawn)
    logger.addHandler(bars)
    event(logger, "run_info", stats={"pretrain": 2, "all": 1, "total": 3})
    job(logger, 1, "pretrain", run="clip")
    job(logger, 2, "pretrain", run="filip")
    event(logger, "job_finished", job_id=1)
    logger.warning("something to know")
    event(logger, "job_error", logging.ERROR, jobid=2)
    assert "something to know" in text.getvalue() and "a line about job_error" in text.getvalue()
    assert "a line about job_finished" not in text.getvalue()
    assert "1/2  1 failed" in drawn.getvalue()
    bars.close()
    logger.info("the last word")
    assert "the last word" in text.getvalue()  # the lines are back
    assert drawn.getvalue().endswith("1 of 2 jobs, 0:00, 1 failed\n")


def test_jobs_that_a_checkpoint_adds_are_counted(printed: tuple[logging.Logger, io.StringIO]) -> None:
    logger, _ = printed
    bars = StageBars(lambda rule: "", io.StringIO())
    logger.addHandler(bars)
    event(logger, "run_info", stats={"translate_plan": 1})
    for number in (5, 6):
        job(logger, number, "translate_part", part=str(number))
    assert bars.stages["translate_part"].total == 2
    bars.close()


def test_where_nobody_looks_nothing_changes(
    printed: tuple[logging.Logger, io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, text = printed
    show_stages(lambda rule: "")  # under pytest stderr is no terminal
    assert len(logger.handlers) == 1
    monkeypatch.setattr(stage_bars.sys, "stderr", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(
        stage_bars.shutil, "get_terminal_size", lambda *_: SimpleNamespace(columns=100, lines=40)
    )
    show_stages(lambda rule: "")
    show_stages(lambda rule: "")  # the Snakefile may be read more than once
    assert len(logger.handlers) == 2
    event(logger, "run_info", stats={"tables": 1})
    assert "a line about run_info" in text.getvalue()  # a dry run starts no job, and keeps its lines
