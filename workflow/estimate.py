"""Estimate how long a study will take on this computer, from measurements: ``workflow/costs/<study>.json``.

    python -m workflow.estimate results=results/demo     # adds the run that has just ended to the study's measurements

The file has one entry for each computer (or instruction set) on which the study ran: how fast it is by
``workflow.speed``, and the seconds and threads of a job of each rule there. A job takes so much of either kind of work
that the entries are explained best; the speed of this computer turns that into seconds.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.files import write_json
from filip.progress import clock, say

COSTS = Path(__file__).resolve().parent / "costs"
TIMES = "times.json"  # in a study's results: the times of the last complete run
MEASURE = (sys.executable, "-m", "workflow.speed")
KINDS = ("compute", "plain")
HALF_A_TENTH = 0.05  # seconds, which are recorded in tenths: assumed for a job recorded as taking none
SPREAD = 0.8  # exponent of the number of cores: on twice as many, a run takes more than half the time


@dataclass
class Recording:
    results: str = option(MISSING, "results of a study that has run from beginning to end, e.g. results/demo")
    cpu: str = option("", "what to call this computer; the name of its CPU if empty")


def main(config: Recording) -> None:
    """Add what the last run of a study took to the measurements from which its duration is estimated."""
    file = Path(config.results) / TIMES
    if not file.is_file():
        raise UserError(f"{file} is not there: run the study from beginning to end first")
    run = json.loads(file.read_text(encoding="utf-8"))
    costs = COSTS / f"{Path(config.results).name}.json"
    entries = read_costs(costs)
    name = config.cpu or cpu_name()
    known = {rule for entry in entries for rule in entry["jobs"]}
    if absent := sorted(known - run["jobs"].keys()):
        raise UserError(
            f"the last run of {config.results} did not do everything, but continued another one: {', '.join(absent)} "
            "did not run. Remove the results, and run the study from beginning to end"
        )
    kept = [entry for entry in entries if entry["cpu"] != name]
    COSTS.mkdir(exist_ok=True)
    speed = json.loads(subprocess.run(MEASURE, stdout=subprocess.PIPE, text=True, check=True).stdout)
    write_json(costs, [*kept, {"cpu": name, "speed": speed, **run}])
    say(f"{costs}: {len(kept) + 1} computers, {len(run['jobs'])} rules, {clock(run['seconds'])} on {name}")


def read_costs(file: Path) -> list[dict[str, Any]]:
    """Read the measurements of a study; return none if nobody has measured it."""
    found: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return found


def cpu_name() -> str:
    """Return the CPU's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class Estimate:
    """A measurement of this computer in a separate process, which starts now and is read once the jobs are known."""

    def __init__(self, study: str, cores: Callable[[], int | None]) -> None:
        self.costs = read_costs(COSTS / f"{study}.json")
        self.cores = cores
        self._measuring = subprocess.Popen(MEASURE, stdout=subprocess.PIPE, text=True) if self.costs else None
        self._speed: dict[str, Any] | None = None

    def __call__(self, counts: Mapping[str, int]) -> dict[str, tuple[float, int]]:
        """Return the seconds and threads of a job of each rule; the first time, say how long all of them take.

        Snakemake counts its jobs more than once, at the end of a dry run for example.
        """
        if self._measuring is None:
            return {}
        first = self._speed is None
        if self._speed is None:
            printed, _ = self._measuring.communicate()
            self._speed = {} if self._measuring.returncode else json.loads(printed)
        speed = self._speed
        if not speed:
            return {}
        jobs = {rule: cost for rule in counts if (cost := job_seconds(rule, self.costs, speed))}
        if first and jobs and (cores := self.cores()):
            seconds = run_seconds(jobs, counts, self.costs, cores)
            say(
                f"this will take about {about(seconds)} here: {cores} cores that multiply {speed['precision']}, as "
                "fast as they were just now"
            )
        return jobs


def asks_for_one(arguments: Sequence[str]) -> bool:
    """Return whether Snakemake was called to run jobs, as far as its arguments tell.

    It matters because measuring takes a second of a core.
    """
    others = {"--lint", "--report", "--unlock", "-n", "--dry-run", "--dryrun", "--dag", "--rulegraph", "--touch"}
    return not others & set(arguments)


def job_seconds(rule: str, costs: Sequence[Mapping[str, Any]], speed: Mapping[str, float]) -> tuple[float, int] | None:
    """Return the seconds of one job of a rule at this speed, and its threads; None if it was never measured.

    Non-negative least squares over the measured computers, of relative errors: seconds = a / compute + b / plain.
    """
    measured = [(entry["speed"], entry["jobs"][rule]) for entry in costs if rule in entry["jobs"]]
    if not measured:
        return None
    taken = np.array([max(job["seconds"], HALF_A_TENTH) for _, job in measured])
    rows = np.array([[1 / found[kind] for kind in KINDS] for found, _ in measured]) / taken[:, None]
    fits = []
    for used in ((0, 1), (0,), (1,)):
        parts = np.zeros(len(KINDS))
        parts[list(used)] = np.linalg.lstsq(rows[:, used], np.ones(len(taken)), rcond=None)[0]
        if (parts >= 0).all():
            fits.append((float(np.abs(rows @ parts - 1).sum()), parts))
    _, best = min(fits, key=lambda fit: fit[0])
    threads = max(job["threads"] for _, job in measured)
    return float(sum(best[n] / speed[kind] for n, kind in enumerate(KINDS))), threads


def run_seconds(
    jobs: Mapping[str, tuple[float, int]], counts: Mapping[str, int], costs: Sequence[Mapping[str, Any]], cores: int
) -> float:
    """Return the seconds of a run with so many jobs of each rule.

    Its cores are assumed to idle as much as they did when it was measured.
    """
    work = sum(counts[rule] * seconds * threads for rule, (seconds, threads) in jobs.items())
    idle = [
        entry["seconds"] * entry["cores"]
        / sum(job["count"] * job["seconds"] * job["threads"] for job in entry["jobs"].values())
        for entry in costs
    ]  # fmt: skip
    measured_on = float(np.mean([entry["cores"] for entry in costs]))
    return float(np.mean(idle) * work / measured_on * (measured_on / cores) ** SPREAD)


def about(seconds: float) -> str:
    """Return ``40 seconds``, ``9 minutes`` or ``3 hours``: no more digits than such an estimate has."""
    if seconds < 90:
        return f"{max(10, round(seconds, -1)):.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours"


if __name__ == "__main__":
    run_command(main, Recording)
