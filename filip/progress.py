"""Show the progress of a long job: a bar in a terminal, a plain line every few seconds in a log. All goes to stderr.

    with Progress("scoring", unit="images", total=len(images)) as progress:
        for batch in batches:
            progress.add(len(batch))

    for image in track(images, "scoring", unit="images"): ...

A job that ends before the first line is due prints nothing. ``say`` prints a line above the bars. ``read_progress``
finds the last such line in a log; by it the workflow shows the progress of each of its jobs.
"""

from __future__ import annotations

import math
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
__all__ = ["Progress", "ProgressLine", "clock", "parse_progress", "read_progress", "say", "track"]

SECONDS_BETWEEN_LINES = 5.0  # between lines in a log
SECONDS_BETWEEN_REDRAWS = 0.2  # between redraws in a terminal
TAIL = 16_384  # bytes at the end of a log in which its last line of progress is looked for


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
    """A count of what is done of ``total`` (None: unknown); used as a context manager.

    what: the job, e.g. "translate pt". unit: what is counted, in the plural, e.g. "captions". shown: False for a
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


@dataclass(frozen=True)
class ProgressLine:
    """A line of progress in a log. total: None if nobody knows it; left: seconds, None if unknown."""

    what: str
    done: int
    total: int | None
    unit: str
    rate: str  # with its unit, "" if unknown
    left: float | None

    def __str__(self) -> str:
        share = f"{100 * self.done / self.total:.0f} %, " if self.total else ""
        of = "" if self.total is None else f" of {self.total:,}"
        rate = f", {self.rate}" if self.rate else ""
        left = "" if self.left is None else f", {clock(self.left)} left"
        return f"{self.what}: {share}{self.done:,}{of} {self.unit}{rate}{left}"


_LINE = re.compile(
    r"(?P<what>[^\n]+?): +(?P<done>[\d,]+)(?: of (?P<total>[\d,]+))? (?P<unit>[^\d,][^,\n]*),"
    r" +(?P<rate>[\d.]+(?:e[+-]?\d+)?|\?) (?P<rate_unit>[^,\n]+/s)(?:, (?P<left>[\d:]+|\?) left)?(?:,.*)?"
)


def parse_progress(line: str) -> ProgressLine | None:
    """Return the progress that a line of a log tells, as ``Progress`` writes it; None for any other line."""
    found = _LINE.fullmatch(line.strip())
    if found is None:
        return None
    number = {key: int(found[key].replace(",", "")) if found[key] else None for key in ("done", "total")}
    known = found["left"] is not None and found["left"] != "?"
    left = sum(int(part) * 60**n for n, part in enumerate(reversed(found["left"].split(":")))) if known else None
    rate = "" if found["rate"] == "?" else f"{found['rate']} {found['rate_unit']}"
    return ProgressLine(found["what"], number["done"] or 0, number["total"], found["unit"], rate, left)


def read_progress(log: str | Path) -> ProgressLine | None:
    """Return the last progress that a log tells; None without a log, or without progress near its end."""
    try:
        with open(log, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    return next((found for line in reversed(lines) if (found := parse_progress(line)) is not None), None)


def clock(seconds: float) -> str:
    """Return seconds as 0:42, 6:10 or 3:05:00."""
    minutes, s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{s:02d}" if hours else f"{minutes}:{s:02d}"
