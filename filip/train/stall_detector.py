"""Report a step that takes far too long while it still runs, from a thread: the main one is waiting."""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable

AT_LEAST = 60.0  # seconds before anything is said
MEDIANS = 20.0  # as many times a step's median seconds without a step are worth a line
FEWEST = 5  # steps from which a median is taken


class StallDetector:
    """Watch one rank's steps from a separate thread. The first rank reports; so does one that waits for data.

    A rank that waits for its data keeps all others in a collective, so its line names the cause.
    """

    def __init__(
        self, rank: int, report: Callable[[str], None], medians: float = MEDIANS, at_least: float = AT_LEAST
    ) -> None:
        """Set the limits.

        medians: how many medians of a step's seconds without a step are worth a line; 0 = never.
        """
        self.medians, self.rank, self.report, self.at_least = medians, rank, report, at_least
        self._seconds: deque[float] = deque(maxlen=100)
        self._began: float | None = None
        self._loading = self._said = False
        self._ended = threading.Event()
        if medians:
            threading.Thread(target=self._watch, name="stall detector", daemon=True).start()

    def step_begins(self) -> None:
        self._began, self._loading, self._said = time.monotonic(), False, False

    def waits_for_data(self, waits: bool) -> None:
        self._loading = waits

    def step_ends(self) -> None:
        assert self._began is not None
        self._seconds.append(time.monotonic() - self._began)
        self._began = None

    def close(self) -> None:
        self._ended.set()

    def check(self, now: float) -> str | None:
        """Return what to say at ``now``, on the clock of time.monotonic; once per step."""
        began = self._began
        if began is None or self._said or len(self._seconds) < FEWEST:
            return None
        median = statistics.median(self._seconds)
        if now - began < max(self.at_least, self.medians * median) or not (self.rank == 0 or self._loading):
            return None
        self._said = True
        waits = "waits for its data" if self._loading else "has its data and waits in the step, as for other ranks"
        long = now - began
        return (
            f"watchdog: no step for {long:.0f} s, {long / median:.0f} times the median: "
            f"rank {self.rank} on {socket.gethostname()} {waits}"
        )

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.at_least / 4)):
            if (line := self.check(time.monotonic())) is not None:
                self.report(line)
