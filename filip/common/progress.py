"""Show the progress of a long job: a bar in a terminal, a plain line every few seconds in a log. All goes to stderr.

    with Progress("scoring", unit="images", total=len(images)) as progress:
        for batch in batches:
            progress.add(len(batch))

    for image in track(images, "scoring", unit="images"): ...

A job that ends before the first line is due prints nothing. ``say`` prints a line above the bars.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
__all__ = ["Progress", "clock", "say", "track"]

SECONDS_BETWEEN_LINES = 5.0  # between lines in a log
SECONDS_BETWEEN_REDRAWS = 0.2  # between redraws in a terminal


class _Bar(tqdm):
    """A tqdm that writes whole lines where stderr is not a terminal."""

    last_shown: int | None = None  # count of the last line in a log
    monitor_interval = 0  # no monitor thread: it would be lost, or held, in a forked worker

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        if self.fp.isatty():
            shown: bool | None = super().display(msg, pos)
            return shown
        self.fp.write(f"{self}\n")
        self.fp.flush()
        self.last_shown = self.n
        return True

    def close(self) -> None:
        if not self.disable and not self.fp.isatty():
            if self.last_shown not in (None, self.n):
                self.display()
            self.delay = math.inf  # tqdm then assumes that the bar was never shown
        super().close()


_Bar.set_lock(threading.RLock())  # tqdm's own lock is a semaphore shared with other processes


class Progress:
    """A count of the work done of ``total`` (None: unknown); used as a context manager.

    what: the job, e.g. "translate pt". unit: the counted things, in the plural, e.g. "captions". shown: False for a
    process if another one counts the same.
    """

    def __init__(self, what: str, unit: str, total: int | None = None, shown: bool = True) -> None:
        self.what = what
        terminal = sys.stderr.isatty()
        seconds = SECONDS_BETWEEN_REDRAWS if terminal else SECONDS_BETWEEN_LINES
        count = "{n:,}" if total is None else "{n:,} of {total:,}"
        left = "" if total is None else ", {remaining} left"
        self._bar = _Bar(
            desc=what,
            total=total,
            disable=not shown,
            unit=f" {unit}",
            file=sys.stderr,
            mininterval=seconds,
            delay=seconds,
            miniters=1,
            dynamic_ncols=True,
            bar_format=None if terminal else f"{{desc}}: {count}{{unit}}, {{rate_noinv_fmt}}{left}{{postfix}}",
        )

    def add(self, count: int = 1, note: str | None = None) -> None:
        """Add ``count`` more that are done; ``note`` follows the figures from now on."""
        if note is not None:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(count)

    def close(self) -> None:
        """End the bar. A job that was long enough to be shown leaves its last figures."""
        self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def track(items: Iterable[T], what: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, showing their progress; the total is ``len(items)`` where they have one."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(what, unit, total) as progress:
        for item in items:
            yield item
            progress.add()


def say(text: str) -> None:
    """Write one line on stderr, above the bars of a terminal."""
    _Bar.write(text, file=sys.stderr)
    sys.stderr.flush()


def clock(seconds: float) -> str:
    """Return seconds as 0:42, 6:10 or 3:05:00."""
    minutes, s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"
