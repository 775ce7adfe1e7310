"""Profile a few steps of a training: the time and memory of each operation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerAction, profile


def profiled(
    window: list[int] | None, done: int, folder: Path, say: Callable[[str], None]
) -> AbstractContextManager[Any]:
    """Return a profiler of the steps ``window`` [first, last], or a context of None if there is nothing to profile.

    Its ``step()`` is to be called after every step; ``done`` steps have been taken before. The trace, in Chrome's
    format, goes to ``folder`` (https://ui.perfetto.dev and chrome://tracing show it). Recording slows the steps down.
    """
    if window is None or done >= window[1]:
        return nullcontext()
    first, last = window

    def action(number: int) -> ProfilerAction:
        step = done + number + 1
        if step == last:
            return ProfilerAction.RECORD_AND_SAVE
        if first <= step < last:
            return ProfilerAction.RECORD
        return ProfilerAction.WARMUP if step == first - 1 else ProfilerAction.NONE

    def write(found: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"steps{first}-{last}.json"
        found.export_chrome_trace(str(file))
        say(f"profiled steps {first} to {last}: {file}")

    return profile(schedule=action, on_trace_ready=write)
