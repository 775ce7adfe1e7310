"""Show the progress of a run: bars in a terminal, which move every second, and lines in a log, every half a minute.

A handler on Snakemake's own logger, attached by the Snakefile: a logger plugin would have to be a separate
distribution, and every profile would have to name it. In a terminal the bars take the place of Snakemake's lines,
but for warnings and errors; elsewhere those lines stay, as they do in ``.snakemake/log`` in any case.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from filip.files import write_json
from filip.progress import clock
from workflow.stages import (
    Job,
    Stage,
    benchmark_of,
    log_lines,
    terminal_lines,
    times_table,
    usual_seconds,
    warm_seconds,
)

DEFAULT = "DefaultStreamHandler"  # Snakemake's name for the handler that prints its lines
STOPPING = "Terminating processes on user request"  # Snakemake's message after Ctrl-C
CLEAR = "\x1b[{}A\x1b[J"  # move up that many lines and clear everything below
SECONDS_BETWEEN_REDRAWS = 1.0
SECONDS_BETWEEN_LINES = 30.0  # in a log
SECONDS_OF_SILENCE = 2.0  # in a terminal, before the first job: short commands stay as they are


Estimating = Callable[[Mapping[str, int]], Mapping[str, tuple[float, int]]]


class StageBars(logging.Handler):
    """A logging handler that draws what Snakemake's events, and the logs of its jobs, tell."""

    def __init__(
        self,
        pattern_of: Callable[[str], str],
        terminal: bool,
        stream: TextIO | None = None,
        cores: Callable[[], int | None] = os.cpu_count,
    ) -> None:
        """Set up the bars. pattern_of: the pattern of a rule's benchmark file, "" if it has none."""
        super().__init__()
        self.stream = stream or sys.stderr
        self.pattern_of, self.cores = pattern_of, cores
        # Turns the number of jobs of each rule into the seconds and threads that one should take here.
        self.estimate: Estimating | None = None
        self.terminal = terminal
        self.stages: dict[str, Stage] = {}
        self.jobs: dict[int, Job] = {}
        self.doing: str | None = None  # what happens before the first job
        self.began = self.last_line = time.monotonic()
        self.started: float | None = None  # when the first job did
        self.drawn = 0
        self.stopping = False
        self.over = threading.Event()
        for handler in _printing():
            handler.addFilter(self.lets_through)
        threading.Thread(target=self._tick, daemon=True).start()

    def begins(self, doing: str) -> None:
        """Say what happens from now until the first job starts."""
        self.doing = doing

    def emit(self, record: logging.LogRecord) -> None:
        """Take note of an event of Snakemake."""
        handle = getattr(self, f"_{getattr(record, 'event', None)}", None)
        if handle is not None:
            handle(record)
            if self.started is not None and self.terminal:
                self.draw()

    def _run_info(self, record: Any) -> None:
        counts = {rule: int(n) for rule, n in getattr(record, "stats", {}).items() if rule not in ("total", "all")}
        guessed = self.estimate(counts) if self.estimate else {}
        for rule, count in counts.items():
            seconds, threads = guessed.get(rule, (None, 1))
            self.stages[rule] = Stage(count, usual_seconds(self.pattern_of(rule)) or seconds, threads)

    def _job_info(self, record: Any) -> None:
        file = Path(str(record.benchmark)) if record.benchmark else None
        earlier = benchmark_of(file) if file else None
        wildcards = " ".join(str(value) for value in (record.wildcards or {}).values())
        log = next((Path(str(path)) for path in record.log or []), None)
        job = Job(record.rule_name, wildcards, time.monotonic(), earlier[0] if earlier else None, log, file)
        self.jobs[record.jobid] = job
        if job.rule == "all":
            return
        stage = self.stages.setdefault(job.rule, Stage(0, usual_seconds(self.pattern_of(job.rule))))
        stage.threads = int(record.threads or 1)
        job.usual = job.usual or stage.usual
        stage.running[record.jobid] = job
        # a checkpoint adds jobs
        stage.total = max(stage.total, stage.done + stage.failed + len(stage.running))

    def _job_started(self, _: Any) -> None:
        if self.started is None:
            self.started = self.last_line = time.monotonic()

    def _job_finished(self, record: Any) -> None:
        self._end(record.job_id, failed=False)

    def _job_error(self, record: Any) -> None:
        self._end(record.jobid, failed=True)

    def _progress(self, record: Any) -> None:
        if record.done >= record.total:
            self.finish()

    def _end(self, number: int, failed: bool) -> None:
        job = self.jobs.get(number)
        stage = self.stages.get(job.rule) if job else None
        if job is None or stage is None or stage.running.pop(number, None) is None:
            return
        stage.failed += failed
        stage.done += not failed
        if not failed:
            seconds, cpu = time.monotonic() - job.started, None
            if job.benchmark and (measured := benchmark_of(job.benchmark)):
                seconds, cpu = measured
                cpu = None if cpu is None else cpu + warm_seconds(job.log)
            stage.seconds += seconds
            stage.cpu_seconds = None if cpu is None or stage.cpu_seconds is None else stage.cpu_seconds + cpu

    def lets_through(self, record: logging.LogRecord) -> bool:
        """Filter Snakemake's own lines. A terminal gets only what went wrong, once the bars are out of the way.

        Nothing that Snakemake says about jobs that are being stopped gets through.
        """
        with self.lock or threading.RLock():
            self.stopping = self.stopping or STOPPING in record.getMessage()
            if self.stopping:
                return False
            wrong = record.levelno >= logging.WARNING or getattr(record, "event", None) == "job_error"
            if self.terminal and self.started is not None and not self.over.is_set() and not wrong:
                return False
            self._clear()
            return True

    def draw(self) -> None:
        """Put the bars where they were drawn before, or write what there is to say now into the log."""
        if self.over.is_set() or self.stopping:
            return
        now = time.monotonic()
        if not self.terminal:
            self._write_lines(now)
            return
        size = shutil.get_terminal_size((100, 40))
        text: list[str] = []
        if self.started is not None:
            text = terminal_lines(self.stages, self.started, now, self.cores(), size.columns - 1, size.lines)
        elif self.doing and now - self.began > SECONDS_OF_SILENCE:
            text = [f"{self.doing} … {clock(now - self.began)}"]
        self._clear()
        self.stream.write("".join(f"{line}\n" for line in text))
        self.stream.flush()
        self.drawn = len(text)

    def _write_lines(self, now: float) -> None:
        if now - self.last_line < SECONDS_BETWEEN_LINES:
            return
        self.last_line = now
        if self.started is None:
            text = [f"{self.doing} … {clock(now - self.began)}"] if self.doing else []
        else:
            text = log_lines(self.stages, self.started, now, self.cores())
        self.stream.write("".join(f"{line}\n" for line in text))
        self.stream.flush()

    def finish(self) -> None:
        """Leave the last state in the terminal, and Snakemake's lines to it again."""
        if not self.over.is_set():
            if self.started is None:
                self._clear()
            elif self.terminal:
                self.draw()
            self.over.set()
            self.drawn = 0

    def say_times(self, file: str) -> None:
        """Print how long each stage took that ran, and keep it in ``file``, from which ``workflow.estimate`` learns."""
        self.finish()
        if self.started is None:
            return
        seconds = time.monotonic() - self.started
        lines = times_table(self.stages, seconds)
        self.stream.write("".join(f"{line}\n" for line in ["", *lines]))
        self.stream.flush()
        jobs = {
            name: {"count": stage.done, "seconds": round(stage.seconds / stage.done, 1), "threads": stage.threads}
            for name, stage in self.stages.items()
            if stage.done
        }
        write_json(file, {"seconds": round(seconds, 1), "cores": self.cores(), "jobs": jobs})

    def close(self) -> None:
        self.finish()
        for handler in _printing():
            handler.removeFilter(self.lets_through)
        super().close()

    def _clear(self) -> None:
        if self.drawn:
            self.stream.write(CLEAR.format(self.drawn))
            self.drawn = 0

    def _tick(self) -> None:
        while not self.over.wait(SECONDS_BETWEEN_REDRAWS):
            with self.lock or threading.RLock():
                self.draw()


def _printing() -> list[logging.Handler]:
    return [handler for handler in _logger().handlers if handler.name == DEFAULT]


def _logger() -> logging.Logger:
    return logging.getLogger("snakemake.logging")


def show_stages(pattern_of: Callable[[str], str], cores: Callable[[], int | None] = os.cpu_count) -> StageBars:
    """Attach the bars, or the lines where stderr is not a terminal that can move its cursor."""
    attached = next((handler for handler in _logger().handlers if isinstance(handler, StageBars)), None)
    if attached is None:
        terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and shutil.get_terminal_size().columns >= 60
        attached = StageBars(pattern_of, terminal, None, cores)
        _logger().addHandler(attached)
    return attached
