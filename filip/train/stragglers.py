"""Collect statistics of each rank once per logged interval: their sums, and the slowest rank with its host.

Collectives make every rank's step as long as the slowest rank's, so a step's duration names nobody. What a rank does
without the others does: waiting for its data, and encoding its batch.
"""

from __future__ import annotations

import socket
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RankReport:
    """The figures of one rank over an interval. Times are means per step, in seconds; encoding is the last step's."""

    data_wait: float
    encoding: float
    counters: dict[str, int] = field(default_factory=dict)  # the loader's, since the start of the run
    host: str = field(default_factory=socket.gethostname)


@dataclass(frozen=True)
class Slowest:
    """The slowest rank in one respect, and the rank in the middle."""

    rank: int
    host: str
    seconds: float
    median: float

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host} takes {self.seconds:.3g} s, the rank in the middle {self.median:.3g} s"


@dataclass(frozen=True)
class FleetReport:
    """The figures of all ranks over an interval."""

    data_wait: Slowest
    encoding: Slowest
    counters: dict[str, int]  # summed over ranks

    def values(self) -> dict[str, float]:
        """Return the numbers under their TensorBoard names."""
        return {
            "fleet/data_wait_slowest_seconds": self.data_wait.seconds,
            "fleet/data_wait_slowest_rank": self.data_wait.rank,
            "fleet/encoding_slowest_seconds": self.encoding.seconds,
            "fleet/encoding_slowest_rank": self.encoding.rank,
            "fleet/encoding_median_seconds": self.encoding.median,
        }


def fleet_report(reports: Sequence[RankReport]) -> FleetReport:
    """Summarise the reports of all ranks, in order of rank."""
    return FleetReport(
        _slowest(reports, [report.data_wait for report in reports]),
        _slowest(reports, [report.encoding for report in reports]),
        summed([report.counters for report in reports]),
    )


def summed(counters: Sequence[dict[str, int]]) -> dict[str, int]:
    """Return the sum of each counter."""
    total: Counter[str] = Counter()
    for own in counters:
        total.update(own)
    return dict(total)


def _slowest(reports: Sequence[RankReport], seconds: list[float]) -> Slowest:
    rank = max(range(len(seconds)), key=lambda r: seconds[r])
    return Slowest(rank, reports[rank].host, seconds[rank], statistics.median_low(seconds))
