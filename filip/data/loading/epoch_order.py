"""Which pair stands where in an epoch: a pure function of (sizes, weights, seed, epoch).

Shards are permuted, then samples are shuffled within windows of some shards (so that a reader touches few
shards at a time), then the sources are merged in proportion. No rank, worker or restart enters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Slots(NamedTuple):
    """An order of pairs, one entry per slot."""

    source: np.ndarray  # int16
    sample: np.ndarray  # int64, within the source
    visit: np.ndarray  # int16: how often the source was gone through before in this epoch (weight above 1)


def lane_slots(
    shard_counts: Sequence[np.ndarray],
    weights: Sequence[float],
    *,
    seed: int,
    epoch: int,
    shuffle_window_shards: int,
    lane: int = 0,
    reader_groups: int = 1,
) -> Slots:
    """The slots of one lane of an epoch.

    ``shard_counts[s]`` holds the samples per shard of source s, ``weights[s]`` how many times its pairs are
    seen per epoch (0.5: a random half). ``shuffle_window_shards`` is in shards. A lane is an equal, contiguous share of
    every pass over the permuted shards, and is shuffled on its own: it gives machines shards of their own.
    """
    parts = []
    for source, (counts, weight) in enumerate(zip(shard_counts, weights, strict=True)):
        orders = []
        for visit, share in _visits(weight):
            shards = np.random.default_rng([seed, epoch, source, visit]).permutation(len(counts))
            rng = np.random.default_rng([seed, epoch, source, visit, lane])
            low, high = _lane_bounds(counts, lane, reader_groups)
            order = _shuffled(counts, shards, rng, shuffle_window_shards, low, high)
            orders.append(order[: _partial(share, len(order))])
        sample = np.concatenate([np.empty(0, np.int64), *orders])
        visits = np.repeat(np.arange(len(orders), dtype=np.int16), [len(o) for o in orders])
        parts.append(Slots(np.full(len(sample), source, np.int16), sample, visits))
    if len(parts) == 1:
        return parts[0]
    # The k-th of a source's n slots belongs at the fraction (k + 1/2) / n of the epoch.
    fraction = np.concatenate([(np.arange(len(p.sample)) + 0.5) / max(1, len(p.sample)) for p in parts])
    order = np.argsort(fraction, kind="stable")
    return Slots(*(np.concatenate(columns)[order] for columns in zip(*parts, strict=True)))


def lane_length(
    shard_counts: Sequence[np.ndarray], weights: Sequence[float], lane: int, reader_groups: int
) -> int:
    """``len(lane_slots(…).sample)`` without computing the order; it is the same in every epoch."""
    total = 0
    for counts, weight in zip(shard_counts, weights, strict=True):
        low, high = _lane_bounds(counts, lane, reader_groups)
        total += sum(_partial(share, high - low) for _, share in _visits(weight))
    return total


def _visits(weight: float) -> Iterator[tuple[int, float]]:
    """Passes over a source: 2.5 gives (0, 1.0), (1, 1.0), (2, 0.5)."""
    visit = 0
    while weight > 0:
        yield visit, min(1.0, weight)
        visit, weight = visit + 1, weight - 1


def _partial(share: float, n: int) -> int:
    return n if share >= 1 else round(share * n)


def _lane_bounds(counts: np.ndarray, lane: int, reader_groups: int) -> tuple[int, int]:
    total = int(counts.sum())
    return total * lane // reader_groups, total * (lane + 1) // reader_groups


def _shuffled(
    counts: np.ndarray,
    shards: np.ndarray,
    rng: np.random.Generator,
    shuffle_window_shards: int,
    low: int,
    high: int,
) -> np.ndarray:
    """Positions low … high - 1 of the samples in the order of ``shards``, shuffled within windows."""
    if high <= low:
        return np.empty(0, np.int64)
    starts = np.cumsum(counts) - counts  # of each shard among the source's samples
    ends = np.cumsum(counts[shards])  # of each permuted shard
    begins = ends - counts[shards]
    first = int(np.searchsorted(ends, low, side="right"))
    last = int(np.searchsorted(begins, high, side="left"))
    lengths = np.minimum(ends[first:last], high) - np.maximum(begins[first:last], low)
    sample = np.arange(low, high) + np.repeat(starts[shards[first:last]] - begins[first:last], lengths)
    block = np.repeat(np.arange(last - first) // max(1, shuffle_window_shards), lengths)
    return sample[np.argsort(block + rng.random(high - low), kind="stable")]
