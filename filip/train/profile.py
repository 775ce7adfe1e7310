"""Record a few steps for a viewer: a trace of operators and kernels, and on CUDA a snapshot of the memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from filip.common.errors import UserError


def parse_steps(value: str | None) -> range:
    """Return the steps of ``profile_steps=FIRST-LAST``, numbered from 1; none for null. Raise UserError for others."""
    if value is None:
        return range(0)
    first, _, last = value.partition("-")
    steps = range(int(first), int(last or first) + 1) if (first + last).isdigit() else range(0)
    if not steps or steps[0] < 1:
        raise UserError(f"profile_steps={value!r} is no FIRST-LAST of steps from 1, such as 100-105")
    return steps


class StepProfiler:
    """Records ``steps`` of a rank into ``folder``: ``trace_rankN.json`` (ui.perfetto.dev, or chrome://tracing).

    On CUDA also ``memory_rankN.pickle`` (docs.pytorch.org/memory_viz): every allocation of these steps, with its stack.
    """

    def __init__(self, steps: range, folder: Path, rank: int) -> None:
        self.steps, self.folder, self.rank = steps, folder, rank
        self.running: Any = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Take the step of this number inside."""
        cuda = torch.cuda.is_available()
        if number in self.steps and self.running is None:  # also where a resumed run starts between
            self.running = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])])
            self.running.start()
            if cuda:
                torch.cuda.memory._record_memory_history()
        yield
        if self.running is not None and number >= self.steps[-1]:
            self.running.stop()
            self.folder.mkdir(parents=True, exist_ok=True)
            self.running.export_chrome_trace(str(self.folder / f"trace_rank{self.rank}.json"))
            if cuda:
                torch.cuda.memory._dump_snapshot(str(self.folder / f"memory_rank{self.rank}.pickle"))
                torch.cuda.memory._record_memory_history(enabled=None)
            self.steps, self.running = range(0), None
