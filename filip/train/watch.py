"""Show the state of a run from its folder, on a terminal: ``filip train watch run_dir=results/demo/runs/filip-…``.

It reads ``log.jsonl`` and what lies next to it, so it works on any machine that sees the folder, on a cluster without a
browser too, and does not disturb the run.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.files import nothing_at
from filip.train.telemetry import LOG, duration, read_log

RECENT = 20  # lines of the log over which rate and ETA are medians
SILENT = 60.0  # seconds without a line, at least, before a run counts as silent
ALARMS = ("watchdog", "rollback", "signal")
HOME_AND_CLEAR = "\x1b[H\x1b[2J"


@dataclass
class Watch:
    run_dir: str = option(MISSING, "folder of a run, or a folder of runs, whose latest is watched")
    once: bool = option(False, "print the state and end; without a terminal it is so in any case")
    every: float = option(5.0, "seconds between two looks", at_least=0.1)


def main(config: Watch) -> None:
    """Show the state of a run from its folder: loss, rate, ETA, alarms."""
    once = config.once or not sys.stdout.isatty()
    while True:
        run = read_run(find_run(Path(config.run_dir)))
        size = shutil.get_terminal_size((100, 40))
        text = "\n".join(describe(run, time.time(), size.columns - 1))
        print(text if once else HOME_AND_CLEAR + text, flush=True)
        if once or run.finished:
            return
        try:
            time.sleep(config.every)
        except KeyboardInterrupt:
            return


@dataclass(frozen=True)
class RunState:
    """The contents of a run's folder.

    steps: those of the whole run, None if unknown; finished: the content of finished.json.
    """

    folder: Path
    lines: list[dict[str, Any]]
    events: list[dict[str, Any]]
    steps: int | None
    finished: dict[str, Any] | None

    @property
    def step(self) -> int:
        return max([entry["step"] for entry in (*self.lines[-1:], *self.events[-1:])], default=0)


def find_run(folder: Path) -> Path:
    """Return the folder of the run: ``folder`` itself, or the run in it that wrote last. UserError if there is none."""
    if (folder / LOG).is_file():
        return folder
    found = sorted(folder.glob(f"*/{LOG}"), key=lambda file: file.stat().st_mtime)
    if not folder.exists():
        raise UserError(nothing_at(folder, "give the run_dir of a training, or a folder of them"))
    if not found:
        raise UserError(f"no run in {folder}: neither {folder / LOG} nor {folder / '*' / LOG} is there")
    return found[-1].parent


def read_run(folder: Path) -> RunState:
    """Read the state of a run, whether it is running or not."""
    lines, events = read_log(folder / LOG)
    finished = folder / "finished.json"
    ended = json.loads(finished.read_text(encoding="utf-8")) if finished.is_file() else None
    return RunState(folder, lines, events, _steps(folder, lines), ended)


def _steps(folder: Path, lines: list[dict[str, Any]]) -> int | None:
    """Return how many steps the run will have: as its last start says, or as its config and progress tell."""
    file = folder / "starts.jsonl"
    starts = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    try:
        start = json.loads(starts[-1]) if starts else {}
    except json.JSONDecodeError:
        start = {}
    config = start.get("config") or {}
    if start.get("steps") or not config:
        return start.get("steps")
    limits = [config["max_steps"]] if config.get("max_steps") else []
    if config.get("epochs") and lines and lines[-1].get("epoch"):
        limits.append(round(lines[-1]["step"] * config["epochs"] / lines[-1]["epoch"]))
    return min(limits, default=None)


def describe(run: RunState, now: float, width: int = 100) -> list[str]:
    """Return the state as lines no longer than ``width``."""
    text = [f"{run.folder}", _progress(run, now)]
    if run.lines:
        text += [_numbers(run.lines[-1]), _rate(run)]
    alarms = [event for event in run.events if event["event"] in ALARMS]
    text += ["", f"alarms: {len(alarms) or 'none'}"]
    text += [f"  step {event['step']:,}: {event['text']}" for event in alarms[-5:]]
    others = [event for event in run.events if event not in alarms]
    text += [f"last event, step {event['step']:,}: {event['text']}" for event in others[-1:]]
    return [line if len(line) <= width else line[: width - 1] + "…" for line in text]


def _progress(run: RunState, now: float) -> str:
    of = f" of {run.steps:,} ({100 * run.step / run.steps:.0f} %)" if run.steps else ""
    where = f"step {run.step:,}{of}"
    last = max([entry.get("time", 0.0) for entry in (*run.lines[-1:], *run.events[-1:])], default=0.0)
    if run.finished:
        return f"finished, {where}"
    if run.events and run.events[-1]["event"] == "signal":
        return f"stopped by a signal, {where}; the same command continues it"
    if not last:
        return f"no line in {LOG} yet"
    patience = max(SILENT, 5 * _seconds_between_lines(run))
    state = "running" if now - last <= patience else "SILENT: stopped, killed or stuck"
    return f"{state}, {where}, last line {duration(now - last)} ago"


def _seconds_between_lines(run: RunState) -> float:
    times = [entry["time"] for entry in run.lines[-RECENT:] if "time" in entry]
    return statistics.median(b - a for a, b in pairwise(times)) if len(times) > 1 else 0.0


def _numbers(entry: dict[str, Any]) -> str:
    loss = entry.get("loss/total")
    parts = [f"loss {loss:.4f}"] if isinstance(loss, int | float) else []
    parts += [
        f"{way} {100 * entry[f'accuracy/{way}']:.1f} %"
        for way in ("i2t", "t2i")
        if f"accuracy/{way}" in entry
    ]
    if "optimizer/lr" in entry:
        parts.append(f"lr {entry['optimizer/lr']:.2e}")
    if "optimizer/logit_scale" in entry:
        parts.append(f"scale {entry['optimizer/logit_scale']:.1f}")
    return "  ".join(parts)


def _rate(run: RunState) -> str:
    def recent(key: str) -> float | None:
        values = [entry[key] for entry in run.lines[-RECENT:] if isinstance(entry.get(key), int | float)]
        return statistics.median(values) if values else None

    seconds, rate = recent("speed/seconds_per_step"), recent("speed/pairs_per_second")
    wait, memory = recent("speed/data_share"), recent("memory/peak_mb")
    parts = [] if rate is None or seconds is None else [f"{rate:,.0f} pairs/s, {seconds:.3g} s a step"]
    parts += [] if wait is None else [f"{100 * wait:.0f} % of it waiting for data"]
    parts += [] if memory is None else [f"{memory:,.0f} MB"]
    if run.steps and seconds is not None and not run.finished:
        parts.append(f"ETA {duration((run.steps - run.step) * seconds)}")
    return "  ".join(parts)


if __name__ == "__main__":
    run_command(main, Watch)
