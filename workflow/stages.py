"""Follow the jobs of a run by Snakemake's events, by the logs of the jobs and by what earlier runs took."""

from __future__ import annotations

import csv
import re
from contextlib import suppress
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from statistics import fmean

from filip.progress import ProgressLine, clock, read_progress
from workflow.warm import CPU_SECONDS

BAR = 20  # letters
NEARLY = 0.97  # how full the bar of a job gets that takes longer than it did before
STEPS = "training"  # the work whose progress alone tells how long the rest of the job takes


@dataclass
class Job:
    """A running job. usual: seconds that it should take, by an earlier run or by an estimate; None if unknown."""

    rule: str
    wildcards: str
    started: float
    usual: float | None = None
    log: Path | None = None
    benchmark: Path | None = None

    def progress(self) -> ProgressLine | None:
        """Return the work that it reports in its log, unless that is done."""
        found = read_progress(self.log) if self.log else None
        return None if found is None or found.total == found.done else found

    def left(self, now: float, progress: ProgressLine | None) -> float | None:
        """Return the seconds until it ends, if anything tells.

        ``usual`` tells what follows the reported work.
        """
        rest = None if self.usual is None else max(0.0, self.usual - (now - self.started))
        told = progress.left if progress else None
        if told is None or rest is None:
            return told if rest is None else rest
        return told if progress and progress.what == STEPS else max(told, rest)


@dataclass
class Stage:
    """The jobs of one rule; ``usual`` is the seconds that one takes."""

    total: int
    usual: float | None = None
    threads: int = 1  # those of one job
    done: int = 0
    failed: int = 0
    running: dict[int, Job] = field(default_factory=dict)
    seconds: float = 0.0  # those of the jobs that are done
    cpu_seconds: float | None = 0.0  # None as soon as one of them is unknown

    @property
    def waiting(self) -> int:
        return max(0, self.total - self.done - self.failed - len(self.running))


@dataclass(frozen=True)
class View:
    """The state of a stage at one moment.

    It has the share that is done, the seconds that its jobs have left, one after another (None: unknown), those of the
    longest that runs, and a line for each that runs.
    """

    share: float
    left: float | None
    longest: float
    jobs: list[str]


def view(stage: Stage, now: float) -> View:
    """Return what to show of a stage now; reads the ends of its jobs' logs."""
    shares, lefts, texts = [], [], []
    for job in stage.running.values():
        progress, elapsed = job.progress(), now - job.started
        left = job.left(now, progress)
        shares.append(0.0 if left is None else min(NEARLY, elapsed / max(elapsed + left, 1e-9)))
        lefts.append(left)
        texts.append(_job_line(job, elapsed, progress))
    known = [left for left in lefts if left is not None]
    pending = stage.usual * stage.waiting if stage.usual is not None else (0.0 if not stage.waiting else None)
    left = None if pending is None or len(known) < len(lefts) else sum(known) + pending
    share = min(1.0, (stage.done + sum(shares)) / max(1, stage.total))
    return View(share, left, max(known, default=0.0), texts)


def _job_line(job: Job, elapsed: float, progress: ProgressLine | None) -> str:
    usual = f" of about {clock(job.usual)}" if job.usual and not (progress and progress.what == STEPS) else ""
    said = f"  {progress}" if progress else ""
    return f"{job.wildcards + ' ' if job.wildcards else ''}{clock(elapsed)}{usual}{said}"


def whole(stages: dict[str, Stage], views: dict[str, View], elapsed: float, cores: int | None) -> str:
    """Return the line for all stages together."""
    done, total = sum(s.done for s in stages.values()), sum(s.total for s in stages.values())
    failed = sum(s.failed for s in stages.values())
    left = wall_left(stages, views, cores)
    text = f"{done} of {total} jobs, {clock(elapsed)}"
    text += f", {failed} failed" if failed else ""
    if left is None or left < 1:
        return text
    certain = all(found.left is not None for found in views.values())
    return f"{text}, {'about' if certain else 'at least'} {clock(left)} left"


def wall_left(stages: dict[str, Stage], views: dict[str, View], cores: int | None) -> float | None:
    """Return the seconds until all is done, by the stages that tell; None if none of them does.

    cores: None = any number.
    """
    known = {name: found.left for name, found in views.items() if found.left is not None}
    if not any(known.values()):
        return None
    work = 0.0
    if cores:
        work = sum(left * min(cores, stages[name].threads) for name, left in known.items()) / cores
    return max(work, *(found.longest for found in views.values()))


def benchmark_of(file: Path) -> tuple[float, float | None] | None:
    """Return seconds and CPU seconds (None if not measured) of a benchmark file.

    None if it is not there or half written.
    """
    try:
        with open(file, newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t"))
        cpu = [row.get("cpu_time", "NA") for row in rows]
        seconds = fmean(float(row["s"]) for row in rows)
        return seconds, (None if "NA" in cpu else fmean(map(float, cpu)))
    except (OSError, KeyError, ValueError):
        return None


def warm_seconds(log: Path | None) -> float:
    """Return the CPU seconds of the processes that ``workflow.warm`` ran for a job; Snakemake does not see them."""
    with suppress(OSError, ValueError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log else []
        return sum(float(line[len(CPU_SECONDS) :].split()[0]) for line in lines if line.startswith(CPU_SECONDS))
    return 0.0


def usual_seconds(pattern: str) -> float | None:
    """Return the mean seconds of the benchmark files that a rule's pattern (``…/{run}.tsv``) matches, or None."""
    files = glob(re.sub(r"\{[^}]*\}", "*", pattern)) if pattern else []
    found = [seconds[0] for file in files if (seconds := benchmark_of(Path(file))) is not None]
    return fmean(found) if found else None


def terminal_lines(
    stages: dict[str, Stage], started: float, now: float, cores: int | None, width: int, height: int
) -> list[str]:
    """Return the terminal's lines: one per stage, one for each of its running jobs, and one for all of them."""
    size = max((len(name) for name in stages), default=0)
    views = {name: view(stage, now) for name, stage in stages.items()}
    count = len(stages) + sum(len(found.jobs) for found in views.values())
    shown = list(stages) if count <= height - 2 else [n for n, s in stages.items() if s.running or s.failed]
    found = []
    for name in shown:
        found.append(_stage_line(name, stages[name], views[name], size))
        found += [f"{'':<{size}}  {text}" for text in views[name].jobs]
    last = whole(stages, views, now - started, cores)
    return [_cut(line, width) for line in [*found[: max(1, height - 2)], last]]


def _stage_line(name: str, stage: Stage, found: View, size: int) -> str:
    full = int(BAR * found.share)
    text = f"{name:<{size}}  {'━' * full + '╌' * (BAR - full)}  {stage.done}/{stage.total}"
    text += f"  {stage.failed} failed" if stage.failed else ""
    if not stage.running:
        return text
    left = "" if found.left is None else f", {clock(found.left)} left"
    return f"{text}  {100 * found.share:.0f} %{left}"


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 1] + "…"


def log_lines(stages: dict[str, Stage], started: float, now: float, cores: int | None) -> list[str]:
    """Return the same for a log: one line for all stages, and one for each job that runs."""
    views = {name: view(stage, now) for name, stage in stages.items()}
    jobs = [f"  {name} {text}" for name, found in views.items() for text in found.jobs]
    return [whole(stages, views, now - started, cores), *jobs]


def times_table(stages: dict[str, Stage], seconds: float) -> list[str]:
    """Return how long each stage that ran took: the seconds of its jobs, one after another, and of the CPU."""
    ran = {name: stage for name, stage in stages.items() if stage.done}
    rows = [("stage", "jobs", "seconds", "CPU seconds")]
    for name, stage in ran.items():
        cpu = "" if stage.cpu_seconds is None else f"{stage.cpu_seconds:,.0f}"
        rows.append((name, str(stage.done), f"{stage.seconds:,.0f}", cpu))
    widths = [max(len(row[n]) for row in rows) for n in range(4)]
    found = [f"{row[0]:<{widths[0]}}" + "".join(f"  {row[n]:>{widths[n]}}" for n in (1, 2, 3)) for row in rows]
    return [*found, f"together {clock(seconds)}; jobs that ran side by side count one by one"]
