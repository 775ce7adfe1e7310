"""The bars of a run, of which nothing is lost where nobody looks."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from workflow import stage_bars
from workflow.stage_bars import DEFAULT, STOPPING, StageBars, show_stages


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> tuple[logging.Logger, io.StringIO]:
    """Return a logger with a handler that prints lines as Snakemake's does."""
    logger, text = logging.Logger("snakemake.logging"), io.StringIO()
    handler = logging.StreamHandler(text)
    handler.name = DEFAULT
    logger.addHandler(handler)
    monkeypatch.setattr(stage_bars, "_logger", lambda: logger)
    return logger, text


@pytest.fixture
def drawn(printed: tuple[logging.Logger, io.StringIO]) -> Iterator[tuple[StageBars, io.StringIO]]:
    """Yield the bars of a terminal."""
    text = io.StringIO()
    bars = StageBars(lambda rule: "", terminal=True, stream=text)
    printed[0].addHandler(bars)
    yield bars, text
    bars.close()


def event(logger: logging.Logger, kind: str, level: int = logging.INFO, **values: object) -> None:
    logger.log(level, f"a line about {kind}", extra={"event": kind, **values})


def job(
    logger: logging.Logger,
    number: int,
    rule: str,
    benchmark: str | None = None,
    log: str | None = None,
    **wildcards: str,
) -> None:
    found = {"benchmark": benchmark, "log": [log] if log else [], "threads": 1}
    event(logger, "job_info", jobid=number, rule_name=rule, wildcards=wildcards, **found)
    event(logger, "job_started", jobs=[number])


def test_bars_replace_the_lines_of_a_run_and_leave_its_errors(
    printed: tuple[logging.Logger, io.StringIO], drawn: tuple[StageBars, io.StringIO]
) -> None:
    (logger, text), (bars, shown) = printed, drawn
    event(logger, "run_info", stats={"pretrain": 2, "all": 1, "total": 3})
    job(logger, 1, "pretrain", run="clip")
    job(logger, 2, "pretrain", run="filip")
    event(logger, "job_finished", job_id=1)
    logger.warning("something to know")
    event(logger, "job_error", logging.ERROR, jobid=2)
    assert "something to know" in text.getvalue() and "a line about job_error" in text.getvalue()
    assert "a line about job_finished" not in text.getvalue()
    assert "1/2  1 failed" in shown.getvalue()
    bars.close()
    logger.info("the last word")
    assert "the last word" in text.getvalue()  # the lines are back
    assert shown.getvalue().endswith("1 of 2 jobs, 0:00, 1 failed\n")


def test_jobs_that_a_checkpoint_adds_are_counted(
    printed: tuple[logging.Logger, io.StringIO], drawn: tuple[StageBars, io.StringIO]
) -> None:
    logger, _ = printed
    event(logger, "run_info", stats={"translate_plan": 1})
    for number in (5, 6):
        job(logger, number, "translate_part", part=str(number))
    assert drawn[0].stages["translate_part"].total == 2


def test_a_first_run_knows_by_the_estimate_how_long_a_job_takes(
    printed: tuple[logging.Logger, io.StringIO], drawn: tuple[StageBars, io.StringIO]
) -> None:
    logger, (bars, shown) = printed[0], drawn
    bars.estimate = lambda counts: dict.fromkeys(counts, (80.0, 1))
    event(logger, "run_info", stats={"pretrain": 2})
    job(logger, 1, "pretrain", run="clip")
    event(logger, "something_else")
    bars.draw()
    assert "clip 0:00 of about 1:20" in shown.getvalue()


def test_what_precedes_the_first_job_is_said_as_well(
    drawn: tuple[StageBars, io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    bars, shown = drawn
    bars.begins("planning the jobs")
    bars.draw()
    assert shown.getvalue() == ""  # not yet: it may be over in a moment
    monkeypatch.setattr(stage_bars, "SECONDS_OF_SILENCE", -1.0)
    bars.draw()
    assert shown.getvalue().startswith("planning the jobs … 0:0")


def test_after_ctrl_c_nothing_is_said_of_jobs_that_are_stopped(
    printed: tuple[logging.Logger, io.StringIO], drawn: tuple[StageBars, io.StringIO]
) -> None:
    logger, text = printed
    job(logger, 1, "pretrain", run="clip")
    logger.info(f"{STOPPING}, this might take some time.")
    event(logger, "job_error", logging.ERROR, jobid=1)
    assert STOPPING not in text.getvalue() and "job_error" not in text.getvalue()


def test_without_a_terminal_lines_say_the_same_among_snakemake_s(
    printed: tuple[logging.Logger, io.StringIO], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_bars, "SECONDS_BETWEEN_LINES", 0.0)
    (logger, text), written, log = printed, io.StringIO(), tmp_path / "clip.log"
    log.write_text("training: 10 of 40 steps, 1.00 steps/s, 0:30 left, loss 4.0\n")
    bars = StageBars(lambda rule: "", terminal=False, stream=written)
    logger.addHandler(bars)
    event(logger, "run_info", stats={"pretrain": 2})
    job(logger, 1, "pretrain", log=str(log), run="clip")
    bars.draw()
    assert "  pretrain clip 0:00  training: 25 %, 10 of 40 steps, 1.00 steps/s, 0:30 left\n" in written.getvalue()
    assert "a line about job_info" in text.getvalue() and "\x1b" not in written.getvalue()
    bars.close()


def test_at_the_end_it_says_and_keeps_how_long_each_stage_took(
    printed: tuple[logging.Logger, io.StringIO], drawn: tuple[StageBars, io.StringIO], tmp_path: Path
) -> None:
    logger, (bars, shown) = printed[0], drawn
    benchmark = tmp_path / "clip.tsv"
    event(logger, "run_info", stats={"pretrain": 1})
    job(logger, 1, "pretrain", benchmark=str(benchmark), run="clip")
    benchmark.write_text("s\tcpu_time\n61.2\t55.5\n")
    event(logger, "job_finished", job_id=1)
    bars.say_times(str(tmp_path / "times.json"))
    assert "pretrain     1       61           56\n" in shown.getvalue()
    kept = json.loads((tmp_path / "times.json").read_text())
    assert kept["jobs"] == {"pretrain": {"count": 1, "seconds": 61.2, "threads": 1}}


def test_where_nobody_looks_snakemake_s_lines_stay(
    printed: tuple[logging.Logger, io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, text = printed
    bars = show_stages(lambda rule: "")  # under pytest stderr is not a terminal
    assert not bars.terminal
    # the Snakefile may be read again
    assert show_stages(lambda rule: "") is bars and len(logger.handlers) == 2
    job(logger, 1, "tables")
    assert "a line about job_started" in text.getvalue()
    bars.close()
    logger.removeHandler(bars)
    monkeypatch.setattr(stage_bars.sys, "stderr", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(stage_bars.shutil, "get_terminal_size", lambda *_: SimpleNamespace(columns=100, lines=40))
    looked_at = show_stages(lambda rule: "")
    assert looked_at.terminal
    event(logger, "run_info", stats={"tables": 1})
    assert "a line about run_info" in text.getvalue()  # a dry run starts no job, and keeps its lines
    looked_at.over.set()
