"""Which pair stands where in an epoch: a pure function of (sizes, weights, seed, epoch).

Shards are permuted, then samples are shuffled within windows of some shards (so that a reader touches few
shards at a time), then the sources are merged in proportion. No rank, worker or restart enters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Slots(NamedTuple):
    """The order of an epoch, one entry per slot."""

    source: np.ndarray  # int16
    sample: np.ndarray  # int64, within the source
    visit: np.ndarray  # int16: how often the source was gone through before in this epoch (weight above 1)


def epoch_slots(
    shard_counts: Sequence[np.ndarray],
    weights: Sequence[float],
    *,
    seed: int,
    epoch: int,
    window: int,
    lane: int = 0,
    lanes: int = 1,
) -> Slots:
    """The slots of one lane of an epoch.

    ``shard_counts[s]`` holds the samples per shard of source s, ``weights[s]`` how many times its pairs are seen
    per epoch (0.5: a random half). ``window`` is in shards. A lane is an equal share of every pass that touches
    shards of its own only; lanes are there for locality of reading on several machines.
    """
    parts = []
    for source, (counts, weight) in enumerate(zip(shard_counts, weights, strict=True)):
        orders, visit, left = [], 0, weight
        while left > 0:
            rng = np.random.default_rng([seed, epoch, source, visit])
            order = _one_pass(counts, rng, window, lane, lanes)
            orders.append(order[: round(left * len(order))] if left < 1 else order)
            visit, left = visit + 1, left - 1
        sample = np.concatenate([np.empty(0, np.int64), *orders])
        visits = np.repeat(np.arange(len(orders), dtype=np.int16), [len(o) for o in orders])
        parts.append(Slots(np.full(len(sample), source, np.int16), sample, visits))
    merged = Slots(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    if len(parts) == 1:
        return merged
    # The k-th of a source's n slots belongs at the fraction (k + 1/2) / n of the epoch.
    fraction = np.concatenate([(np.arange(len(p.sample)) + 0.5) / max(1, len(p.sample)) for p in parts])
    order = np.argsort(fraction, kind="stable")
    return Slots(*(column[order] for column in merged))


def _one_pass(counts: np.ndarray, rng: np.random.Generator, window: int, lane: int, lanes: int) -> np.ndarray:
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    shards = rng.permutation(len(counts))
    permuted = counts[shards]
    ends = np.cumsum(permuted)
    total = int(ends[-1]) if len(ends) else 0
    # Sample ids in the order of the permuted shards: position - (start of the shard here) + (start there).
    shift = np.repeat(starts[shards] - (ends - permuted), permuted)
    ids = np.arange(total) + shift
    block = np.repeat(np.arange(len(shards)) // max(1, window), permuted)
    low, high = total * lane // lanes, total * (lane + 1) // lanes
    keys = block + rng.random(total)
    return ids[low:high][np.argsort(keys[low:high], kind="stable")]
