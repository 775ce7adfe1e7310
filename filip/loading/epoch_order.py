"""Order the pairs of an epoch, as a pure function of (sizes, weights, seed, epoch).

Shards are permuted, then samples are shuffled within windows of some shards (so that a reader touches few
shards at a time), then the sources are merged in proportion. The order does not depend on ranks, workers or restarts.

Only the window that is being read is held in memory: at 340 million pairs the order of a whole epoch is 4 GB.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

_WINDOWS_HELD = 2  # per source and reader group: batches on both sides of a border are read in turn


class Slots(NamedTuple):
    """An order of pairs, one entry per slot."""

    source: np.ndarray  # int16
    sample: np.ndarray  # int64, within the source
    visit: np.ndarray  # int16: how many passes over the source came before in this epoch (weight above 1)


class EpochOrder:
    """The order of one epoch, cut into ``reader_groups`` equal parts that are shuffled separately.

    ``shard_counts[s]`` holds the samples per shard of source s, ``weights[s]`` how many times its pairs are
    seen per epoch (0.5: a random half). A reader group has a contiguous share of every pass over the permuted
    shards: so machines need not share shards.
    """

    def __init__(
        self,
        shard_counts: Sequence[np.ndarray],
        weights: Sequence[float],
        *,
        seed: int,
        epoch: int,
        shuffle_window_shards: int,
        reader_groups: int = 1,
    ) -> None:
        self.counts, self.weights, self.groups = list(shard_counts), list(weights), reader_groups
        self.seed, self.epoch, self.window = seed, epoch, max(1, shuffle_window_shards)
        self._passes: dict[tuple[int, int], _Pass] = {}
        self._windows: OrderedDict[tuple[int, int, int, int], np.ndarray] = OrderedDict()

    def slots(self, group: int, start: int, stop: int) -> Slots:
        """Return the slots start … stop - 1 of a reader group."""
        pairs = zip(self.counts, self.weights, strict=True)
        lengths = [_source_length(counts, weight, group, self.groups) for counts, weight in pairs]
        if not 0 <= start <= stop <= sum(lengths):
            raise IndexError(f"slots {start} to {stop} of {sum(lengths)}")
        columns: list[tuple[np.ndarray, Slots]] = []
        for source in range(len(self.counts)):
            first, last = (_first_at(place, source, lengths) for place in (start, stop))
            place = _places(np.arange(first, last), source, lengths)
            columns.append((place, self._of_source(source, group, first, last)))
        order = np.argsort(np.concatenate([place for place, _ in columns]), kind="stable")
        parts = zip(*(slots for _, slots in columns), strict=True)
        return Slots(*(np.concatenate(column)[order] for column in parts))

    def _of_source(self, source: int, group: int, start: int, stop: int) -> Slots:
        """Return the slots start … stop - 1 of one source, visit after visit."""
        low, high = _bounds(self.counts[source], group, self.groups)
        samples, visits, passed = [np.empty(0, np.int64)], [np.empty(0, np.int16)], 0
        for visit, share in _visits(self.weights[source]):
            length = _partial(share, high - low)
            a, b = max(start - passed, 0), min(stop - passed, length)
            if a < b:
                samples.append(self._of_pass(source, visit, group, a, b))
                visits.append(np.full(b - a, visit, np.int16))
            passed += length
        sample = np.concatenate(samples)
        return Slots(np.full(len(sample), source, np.int16), sample, np.concatenate(visits))

    def _of_pass(self, source: int, visit: int, group: int, start: int, stop: int) -> np.ndarray:
        """Return samples at start … stop - 1 of a reader group's share of one pass over a source."""
        low, high = _bounds(self.counts[source], group, self.groups)
        borders = self._pass(source, visit).borders(low, high, self.window)
        first = int(np.searchsorted(borders, low + start, side="right")) - 1
        last = int(np.searchsorted(borders, low + stop, side="left"))
        parts = []
        for number in range(first, last):
            begin, end = int(borders[number]), int(borders[number + 1])
            if begin < end:
                key = (source, visit, group, number)
                shuffled = self._shuffled(key, begin, end, skipped=begin - low)
                parts.append(shuffled[max(low + start - begin, 0) : low + stop - begin])
        return np.concatenate(parts)

    def _shuffled(self, key: tuple[int, int, int, int], begin: int, end: int, skipped: int) -> np.ndarray:
        """Return the samples at positions begin … end - 1 of a pass: one window, shuffled.

        key: source, visit, group and number of the window. skipped: samples of the group before the window.
        """
        if key in self._windows:
            self._windows.move_to_end(key)
            return self._windows[key]
        source, visit, group, number = key
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, self.epoch, source, visit, group]))
        bits.advance(skipped)  # one draw per sample
        # The number of the window goes in, although it is the same for all: draws that differ only in the last bits
        # are then equal, as they are when all windows are sorted at once, and keep the order of the shards.
        draws = number + np.random.Generator(bits).random(end - begin)
        samples = self._pass(source, visit).samples(begin, end)[np.argsort(draws, kind="stable")]
        self._windows[key] = samples
        readers = {(source, group) for source, _, group, _ in self._windows}
        while len(self._windows) > _WINDOWS_HELD * len(readers):
            self._windows.popitem(last=False)
        return samples

    def _pass(self, source: int, visit: int) -> _Pass:
        if (source, visit) not in self._passes:
            rng = np.random.default_rng([self.seed, self.epoch, source, visit])
            self._passes[source, visit] = _Pass(self.counts[source], rng)
        return self._passes[source, visit]


class _Pass:
    """A pass over the permuted shards of a source. A position counts samples in that order of shards."""

    def __init__(self, counts: np.ndarray, rng: np.random.Generator) -> None:
        shards = rng.permutation(len(counts))
        starts = np.cumsum(counts) - counts  # first sample of each shard in the source
        self.starts, self.ends = starts[shards], np.cumsum(counts[shards])  # bounds of each permuted shard
        self.begins = self.ends - counts[shards]

    def borders(self, low: int, high: int, window: int) -> np.ndarray:
        """Return where the windows of so many shards begin between the positions low and high, and ``high``."""
        first = int(np.searchsorted(self.ends, low, side="right"))
        last = int(np.searchsorted(self.begins, high, side="left"))
        borders = np.append(self.begins[first:last:window], high)
        borders[0] = low
        return borders

    def samples(self, begin: int, end: int) -> np.ndarray:
        """Return the samples at positions begin … end - 1, not shuffled."""
        first = int(np.searchsorted(self.ends, begin, side="right"))
        last = int(np.searchsorted(self.begins, end, side="left"))
        lengths = np.minimum(self.ends[first:last], end) - np.maximum(self.begins[first:last], begin)
        return np.arange(begin, end) + np.repeat(self.starts[first:last] - self.begins[first:last], lengths)


def group_length(shard_counts: Sequence[np.ndarray], weights: Sequence[float], group: int, reader_groups: int) -> int:
    """Return the slots of a reader group, which are the same in every epoch."""
    pairs = zip(shard_counts, weights, strict=True)
    return sum(_source_length(counts, weight, group, reader_groups) for counts, weight in pairs)


def _source_length(counts: np.ndarray, weight: float, group: int, groups: int) -> int:
    low, high = _bounds(counts, group, groups)
    return sum(_partial(share, high - low) for _, share in _visits(weight))


# The k-th of a source's n slots belongs at the fraction (k + 1/2) / n of the epoch; of equal fractions, the one of the
# earlier source comes first.


def _fraction(k: np.ndarray, n: int) -> np.ndarray:
    return (k + 0.5) / max(1, n)


def _places(k: np.ndarray, source: int, lengths: Sequence[int]) -> np.ndarray:
    """Return where the k-th slots of a source are among the slots of all sources."""
    fraction = _fraction(k, lengths[source])
    place = k.copy()
    for other, n in enumerate(lengths):
        if other != source:
            place += _count_before(fraction, n, np.less_equal if other < source else np.less)
    return place


def _count_before(fraction: np.ndarray, n: int, before: np.ufunc) -> np.ndarray:
    """Count the fractions of a source, of n, that are ``before`` each given one; before: less, or less or equal."""
    count = np.clip(np.ceil(fraction * n - 0.5), 0, n).astype(np.int64)
    # the product may have been rounded either way
    count -= (count > 0) & ~before(_fraction(count - 1, n), fraction)
    count += (count < n) & before(_fraction(count, n), fraction)
    return count


def _first_at(place: int, source: int, lengths: Sequence[int]) -> int:
    """Return the first slot of a source that is at ``place`` or later among the slots of all sources."""
    guess = place * lengths[source] // max(1, sum(lengths))
    near = len(lengths) + 2  # each other source shifts a slot by at most one place
    k = np.arange(max(0, guess - near), min(lengths[source], guess + near + 1))
    return int(k[0] + np.searchsorted(_places(k, source, lengths), place)) if len(k) else 0


def _visits(weight: float) -> Iterator[tuple[int, float]]:
    """Return the passes over a source: 2.5 gives (0, 1.0), (1, 1.0), (2, 0.5)."""
    visit = 0
    while weight > 0:
        yield visit, min(1.0, weight)
        visit, weight = visit + 1, weight - 1


def _partial(share: float, n: int) -> int:
    return n if share >= 1 else round(share * n)


def _bounds(counts: np.ndarray, group: int, groups: int) -> tuple[int, int]:
    """Return the positions of a pass that belong to a reader group: from, to."""
    total = int(counts.sum())
    return total * group // groups, total * (group + 1) // groups
