"""One bar per rule while Snakemake runs in a terminal, with what is left by the benchmarks of earlier runs.

A handler on Snakemake's own logger, attached by the Snakefile: a logger plugin would have to be a distribution of its
own, and every profile would have to name it. Without a terminal nothing is attached: logs keep Snakemake's plain
lines, and so does ``.snakemake/log`` in any case.
"""

from __future__ import annotations

import csv
import logging
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

DEFAULT = "DefaultStreamHandler"  # Snakemake's name for what prints its lines
BAR = 24  # letters
NEARLY = 0.97  # how full the bar of a job gets that takes longer than it did before
CLEAR = "\x1b[{}A\x1b[J"  # so many lines up, and everything below away


@dataclass
class Stage:
    """The jobs of one rule. running: {job: (wildcards, start, seconds of an earlier run or None)}."""

    total: int
    usual: float | None = None
    done: int = 0
    failed: int = 0
    running: dict[int, tuple[str, float, float | None]] = field(default_factory=dict)

    def share(self, now: float) -> float:
        """How much of the stage is done, 0 to 1."""
        parts = [min(NEARLY, (now - start) / usual) for _, start, usual in self.running.values() if usual]
        return min(1.0, (self.done + sum(parts)) / max(1, self.total))

    def left(self, now: float) -> float | None:
        """Seconds of work that are left, if earlier runs tell."""
        if self.usual is None:
            return None
        started = sum(
            max(0.0, (usual or self.usual) - (now - start)) for _, start, usual in self.running.values()
        )
        return started + self.usual * max(0, self.total - self.done - self.failed - len(self.running))


def benchmark_seconds(pattern: str) -> float | None:
    """Mean seconds of the benchmark files that a rule's pattern (``…/{run}.tsv``) matches; None if there are none."""
    files = glob(re.sub(r"\{[^}]*\}", "*", pattern)) if pattern else []
    found = [seconds for file in files if (seconds := _seconds(Path(file))) is not None]
    return fmean(found) if found else None


def _seconds(file: Path) -> float | None:
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            return fmean(float(row["s"]) for row in csv.DictReader(lines, delimiter="\t"))
    except (OSError, KeyError, ValueError):
        return None  # not there, or half written


def lines(stages: Mapping[str, Stage], started: float, now: float, width: int, height: int) -> list[str]:
    """What stands in the terminal: a line per stage, and one for all of them."""
    size = max((len(name) for name in stages), default=0)
    shown = [(name, stage) for name, stage in stages.items()]
    if len(shown) > height - 2:  # only what is going on
        shown = [(name, stage) for name, stage in shown if stage.running or stage.failed]
    found = [_line(name, stage, size, now, width) for name, stage in shown[: max(1, height - 2)]]
    left = [seconds for stage in stages.values() if (seconds := stage.left(now)) is not None]
    done, total = sum(s.done for s in stages.values()), sum(s.total for s in stages.values())
    failed = sum(s.failed for s in stages.values())
    whole = f"{done} of {total} jobs, {clock(now - started)}"
    whole += f", {failed} failed" if failed else ""
    whole += f", about {clock(sum(left))} of work left" if sum(left) >= 1 else ""
    return [*found, whole[:width]]


def _line(name: str, stage: Stage, size: int, now: float, width: int) -> str:
    full = int(BAR * stage.share(now))
    bar = "━" * full + "╌" * (BAR - full)
    text = f"{name:<{size}}  {bar}  {stage.done}/{stage.total}"
    text += f"  {stage.failed} failed" if stage.failed else ""
    for wildcards, start, usual in stage.running.values():
        of = f" of about {clock(usual)}" if usual else ""
        text += f"  {wildcards + ' ' if wildcards else ''}{clock(now - start)}{of}"
    return text if len(text) <= width else text[: width - 1] + "…"


def clock(seconds: float) -> str:
    """0:42, 6:10 or 3:05:00."""
    minutes, s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"


class StageBars(logging.Handler):
    """Draws from the first job on, and hides Snakemake's lines meanwhile; warnings and errors stand above the bars."""

    def __init__(self, benchmark_of: Callable[[str], str], stream: TextIO | None = None) -> None:
        """benchmark_of: the pattern of a rule's benchmark file, "" if it has none."""
        super().__init__()
        self.stream = stream or sys.stderr
        self.benchmark_of = benchmark_of
        self.stages: dict[str, Stage] = {}
        self.jobs: dict[int, tuple[str, str, float | None]] = {}
        self.started: float | None = None
        self.drawn = 0
        self.ticking = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of an event of Snakemake."""
        handle = getattr(self, f"_{getattr(record, 'event', None)}", None)
        if handle is not None:
            handle(record)
            self.draw()

    def _run_info(self, record: Any) -> None:
        for rule, count in getattr(record, "stats", {}).items():
            if rule not in ("total", "all"):
                self.stages[rule] = Stage(int(count), benchmark_seconds(self.benchmark_of(rule)))

    def _job_info(self, record: Any) -> None:
        earlier = _seconds(Path(str(record.benchmark))) if record.benchmark else None
        wildcards = " ".join(str(value) for value in (record.wildcards or {}).values())
        self.jobs[record.jobid] = (record.rule_name, wildcards, earlier)
        if record.rule_name == "all":
            return
        usual = benchmark_seconds(self.benchmark_of(record.rule_name))
        stage = self.stages.setdefault(record.rule_name, Stage(0, usual))
        stage.running[record.jobid] = (wildcards, time.monotonic(), earlier or stage.usual)
        stage.total = max(
            stage.total, stage.done + stage.failed + len(stage.running)
        )  # a checkpoint added jobs

    def _job_started(self, _: Any) -> None:
        if self.started is None:
            self.started = time.monotonic()
            for handler in _printing():
                handler.addFilter(self.lets_through)
            threading.Thread(target=self._tick, daemon=True).start()

    def _job_finished(self, record: Any) -> None:
        self._end(record.job_id, failed=False)

    def _job_error(self, record: Any) -> None:
        self._end(record.jobid, failed=True)

    def _progress(self, record: Any) -> None:
        if record.done >= record.total:
            self.finish()

    def _end(self, job: int, failed: bool) -> None:
        stage = self.stages.get(self.jobs.get(job, ("", "", None))[0])
        if stage is not None and stage.running.pop(job, None) is not None:
            stage.failed += failed
            stage.done += not failed

    def lets_through(self, record: logging.LogRecord) -> bool:
        """The filter of Snakemake's own lines: whatever went wrong, once the bars are out of the way."""
        with self.lock or threading.RLock():
            wrong = record.levelno >= logging.WARNING or getattr(record, "event", None) == "job_error"
            if wrong:
                self._clear()
            return wrong

    def draw(self) -> None:
        """Put the bars where they were drawn before."""
        if self.started is None or self.ticking.is_set():
            return
        size = shutil.get_terminal_size((100, 40))
        text = lines(self.stages, self.started, time.monotonic(), size.columns - 1, size.lines)
        self._clear()
        self.stream.write("\n".join(text) + "\n")
        self.stream.flush()
        self.drawn = len(text)

    def finish(self) -> None:
        """Leave the last state in the terminal, and Snakemake's lines to it again."""
        if self.started is not None and not self.ticking.is_set():
            self.draw()
            self.ticking.set()
            self.drawn = 0
            for handler in _printing():
                handler.removeFilter(self.lets_through)

    def close(self) -> None:
        self.finish()
        super().close()

    def _clear(self) -> None:
        if self.drawn:
            self.stream.write(CLEAR.format(self.drawn))
            self.drawn = 0

    def _tick(self) -> None:
        while not self.ticking.wait(1.0):
            with self.lock or threading.RLock():
                self.draw()


def _printing() -> list[logging.Handler]:
    return [handler for handler in _logger().handlers if handler.name == DEFAULT]


def _logger() -> logging.Logger:
    return logging.getLogger("snakemake.logging")


def show_stages(benchmark_of: Callable[[str], str]) -> None:
    """Attach the bars, if a person is looking: stderr is a terminal that can move its cursor."""
    capable = sys.stderr.isatty() and shutil.get_terminal_size().columns >= 60
    if capable and not any(isinstance(handler, StageBars) for handler in _logger().handlers):
        _logger().addHandler(StageBars(benchmark_of))
