"""Time a check, keep its result, and show it in the report."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from filip import device as devices

PASS, FAIL, SKIPPED = "pass", "fail", "skipped"


@dataclass
class Finding:
    """The verdict, one sentence, and a table of figures."""

    verdict: str
    said: str
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """The place of a check: where it runs, how large its problems are, and where it may write."""

    device: torch.device
    tiny: bool
    folder: Path

    @property
    def name(self) -> str:
        return devices.name(self.device)


def seconds_and_bytes(step: Callable[[], object], device: torch.device, rounds: int) -> tuple[float, float]:
    """Measure median seconds of ``step`` after one that warms up, and the most bytes that it added to what was held."""
    step()
    devices.synchronize(device)
    devices.reset_peak_memory(device)
    before = devices.memory_mb(device)
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        step()
        devices.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times), (devices.peak_memory_mb(device) - before) * devices.MB


def markdown(found: dict[str, Any]) -> str:
    """Write the report: a table of verdicts, then each check with its figures."""
    lines = ["# GPU check", "", "| check | verdict | |", "| --- | --- | --- |"]
    lines += [f"| {name} | {check['verdict']} | {_cell(check['said'])} |" for name, check in found.items()]
    for name, check in found.items():
        lines += ["", f"## {name}", "", check["question"], "", f"**{check['verdict']}**: {check['said']}"]
        columns = list(dict.fromkeys(key for row in check["rows"] for key in row))
        if columns:
            lines += ["", f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
            lines += [f"| {' | '.join(_cell(row.get(key, '')) for key in columns)} |" for row in check["rows"]]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
