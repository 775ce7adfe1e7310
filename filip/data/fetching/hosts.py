"""Leave a host alone for as long as it asks, and ask it again without holding anything else up.

A host that answers 429, or 503 with ``Retry-After``, is not asked by any thread of the process until its time is over.
In the first pass its URLs are not waited for: they are left to the retry pass, unless most of a shard is of that host.
There they wait in a queue, not in a thread; then one URL is asked for, and only if it is answered come the others. A
host that does nothing but refuse is given up, so that the pass ends however long a host answers 429.

A host without an address, or to which three connections in a row time out, is dead: the process tries it once a minute.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Row = tuple[int, str]  # its number in the shard, and its URL
# a row's number, its bytes or what went wrong, and the host that wants to be left alone
Result = tuple[int, bytes | None, str | None, str | None]

BUSY_HOST = "busy_host"  # the reason of a URL that was not asked for
REFUSALS = 3  # rounds in a row in which a host answers with nothing else: a retry pass gives it up
LONGEST_WAIT = 60.0  # seconds: a retry pass gives up a host that asks for more at once
PATIENCE = 600.0  # seconds that a shard of a retry pass waits for one host in all
DAY = 86_400.0
DEAD_HOST = "dead_host"  # the reason of a URL that was not asked for
LOST = 3  # connections in a row that time out, until a host is dead; one in a retry pass


def host_of(url: str) -> str:
    """Return the host of a URL, with its port; unlike ``urlsplit`` it raises for none."""
    return url.partition("://")[2].partition("/")[0]


def of_one_host(rows: list[Row]) -> bool:
    """Return whether most of the rows are of one host: then there is nothing else to do while it is busy."""
    counts = Counter(host_of(url) for _, url in rows)
    return 2 * max(counts.values(), default=0) > len(rows)


def not_asked(host: str) -> str:
    return f"{BUSY_HOST}: not asked for, as {host} wants to be left alone"


@dataclass
class _Busy:
    until: float  # by time.monotonic
    refused: float  # when it refused last
    rounds: int  # refusals in a row; requests that were under way together count once


class Hosts:
    """The hosts that asked this process to leave them alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy: dict[str, _Busy] = {}
        # by name and port: how many connections timed out, and when another is tried, as networks fail for a while, too
        self._lost: dict[tuple[str, int], tuple[int, float]] = {}
        self.most_lost = LOST
        self._asking: Counter[str] = Counter()  # threads at each host
        self._done = threading.Condition()

    @contextmanager
    def asking(self, host: str, most: int) -> Iterator[None]:
        """Wait until less than ``most`` threads of this process ask a host, and be one of them."""
        with self._done:
            self._done.wait_for(lambda: self._asking[host] < most)
            self._asking[host] += 1
        try:
            yield
        finally:
            with self._done:
                self._asking[host] -= 1
                self._asking += Counter()  # drops hosts that nobody asks
                self._done.notify_all()

    def is_dead(self, place: tuple[str, int]) -> bool:
        """Return whether a host is not to be asked; once in a while it is."""
        with self._lock:
            lost, again = self._lost.get(place, (0, 0.0))
            if lost < self.most_lost:
                return False
            if due := time.monotonic() > again:
                self._lost[place] = lost, time.monotonic() + LONGEST_WAIT
            return not due

    def lost(self, place: tuple[str, int], connections: int = 1) -> None:
        """Note that a host does not answer."""
        with self._lock:
            before, _ = self._lost.get(place, (0, 0.0))
            self._lost[place] = before + connections, time.monotonic() + LONGEST_WAIT

    def reached(self, place: tuple[str, int]) -> None:
        """Note that a host answers."""
        with self._lock:
            self._lost.pop(place, None)

    def refused(self, host: str, seconds: float | None, asked: float) -> bool:
        """Note that a host refused a request of the time ``asked``; return whether it is to be left alone.

        seconds: for which it wants to be left alone; None: without a header, so the time doubles with each round.
        """
        now = time.monotonic()
        with self._lock:
            busy = self._busy.get(host, _Busy(0.0, 0.0, 0))
            # requests that were on their way when it refused another one are of the same round
            rounds = busy.rounds + (asked >= busy.refused)
            pause = min(2.0 ** (rounds - 1), LONGEST_WAIT) if seconds is None else min(seconds, DAY)
            if pause > 0:
                self._busy[host] = _Busy(max(busy.until, now + pause), now, rounds)
        return pause > 0

    def answered(self, host: str, asked: float) -> None:
        """Note that a host answered a request of the time ``asked``, which proves nothing if it has refused since."""
        with self._lock:
            if host in self._busy and asked >= self._busy[host].refused:
                del self._busy[host]

    def wait(self, host: str) -> float:
        """Return the seconds for which a host is still to be left alone."""
        with self._lock:
            return max(0.0, self._busy[host].until - time.monotonic()) if host in self._busy else 0.0

    def rounds(self, host: str) -> int:
        with self._lock:
            return self._busy[host].rounds if host in self._busy else 0


HOSTS = Hosts()  # shared by all threads of this process


class PatientRows:
    """Iterator over the rows of a shard that are to be asked for next; rows of a busy host come when it may be asked.

    Another thread has the result of each: ``is_final(result)``. It ends when all have their answer or are ``left``.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.left: list[Result] = []  # rows of hosts that were given up, with their last result
        self.given_up: Counter[str] = Counter()  # these hosts, and how many rows they had left
        self._changed = threading.Condition()
        self._ready = deque(rows)
        self._asked: dict[int, Row] = {}
        self._waiting: dict[str, list[tuple[Row, Result]]] = {}  # by host
        self._times: list[tuple[float, str]] = []  # a heap: when to ask which host again
        self._trials: dict[int, str] = {}  # rows that are asked for to try a host again
        self._waited: defaultdict[str, float] = defaultdict(float)  # seconds for each host
        self._closed = False

    def __iter__(self) -> Iterator[Row]:
        while (row := self._next()) is not None:
            yield row

    def close(self) -> None:
        """End the iteration, which may be waiting in another thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def is_final(self, result: Result) -> bool:
        """Take the result of a row; return False if the row will be asked for again, or is among those left."""
        with self._changed:
            row, refusing = self._asked.pop(result[0]), result[3]
            tried = self._trials.pop(result[0], None)
            if tried is not None and tried != refusing:  # it serves again
                self._ready.extendleft(row for row, _ in reversed(self._waiting.pop(tried, [])))
            if refusing is not None:
                self._put_aside(row, result, refusing, tried == refusing)
            self._changed.notify_all()
        return refusing is None

    def _next(self) -> Row | None:
        with self._changed:
            while not self._closed:
                row = self._on_trial() or self._whose_host_is_free()
                if row is not None:
                    self._asked[row[0]] = row
                    return row
                if not self._asked and not self._times:
                    return None
                self._changed.wait(max(0.0, self._times[0][0] - time.monotonic()) if self._times else None)
            return None

    def _on_trial(self) -> Row | None:
        """Return a row of a host after its time is over."""
        if not self._times or self._times[0][0] > time.monotonic():
            return None
        _, host = heapq.heappop(self._times)
        row, _ = self._waiting[host].pop(0)
        self._trials[row[0]] = host
        return row

    def _whose_host_is_free(self) -> Row | None:
        while self._ready:
            row = self._ready.popleft()
            host = host_of(row[1])
            if host not in self._waiting and host not in self.given_up and not HOSTS.wait(host):
                return row
            self._put_aside(row, (row[0], None, not_asked(host), host), host, False)
        return None

    def _put_aside(self, row: Row, result: Result, host: str, tried: bool) -> None:
        if host in self.given_up:
            self.given_up[host] += 1
            self.left.append(result)
            return
        new = host not in self._waiting
        self._waiting.setdefault(host, []).append((row, result))
        if new or tried:
            wait = HOSTS.wait(host)
            self._waited[host] += wait
            if HOSTS.rounds(host) >= REFUSALS or wait > LONGEST_WAIT or self._waited[host] > PATIENCE:
                given_up = [result for _, result in self._waiting.pop(host)]
                self.given_up[host] = len(given_up)
                self.left += given_up
            else:
                heapq.heappush(self._times, (time.monotonic() + wait, host))
