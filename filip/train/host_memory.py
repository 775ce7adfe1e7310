"""Plan the host memory that the ranks of one node take, part by part: what a training asks the scheduler for.

Everything but the index grows with the loader's workers, of which a node has ranks x data.workers.
"""

from __future__ import annotations

import math

from filip.data.loading.config import PREFETCH, DataConfig

PAIRS_PER_SHARD = 10_000  # as img2dataset writes them
INDEX_BYTES = 16  # a pair: offset, size and row, see filip.data.loading.pair_index
# Measured on Linux with Python 3.11 and torch 2.13 (anonymous memory, smaps): a rank after its imports; the pages that
# it writes to again once workers, which keep the old ones, have been forked from it; a worker that has made batches; a
# pair of an open side-car with three captions of 70 letters; the names of a shard.
RANK_BYTES, COPIED_BYTES, WORKER_BYTES = 340e6, 80e6, 60e6
CAPTION_BYTES, NAME_BYTES = 280, 1600
GPU_RANK_BYTES = 2e9  # for the driver and its libraries on the host, for each rank: assumed, never measured here
SAFETY = 1.2  # factor on the sum: for the page cache, and for allocators that do not give everything back


def node_bytes(
    data: DataConfig,
    *,
    ranks: int,
    world_size: int,
    batch_per_rank: int,
    image_size: int,
    parameters: int,
    pairs: int,
    gpu: bool = True,
) -> dict[str, float]:
    """Return the bytes by part of a node with ``ranks`` of the ``world_size`` ranks.

    batch_per_rank: pairs that a rank loads for one contrastive batch. pairs: those of one epoch, all sources.
    """
    sources = max(1, len(data.sources))
    readers = ranks * max(1, data.workers)  # processes that read; with workers=0 the ranks themselves
    shards = -(-pairs // PAIRS_PER_SHARD)
    windows = reader_groups_of_a_rank(data.reader_groups, world_size) * sources  # those of one rank
    window = min(pairs, data.shuffle_window_shards * PAIRS_PER_SHARD)
    opened = min(shards, windows * (data.shuffle_window_shards + 1))
    batch = batch_per_rank * 3 * image_size * image_size
    # each worker has prepared `prefetch` batches and makes another; the rank holds one, pinned, and receives the next
    batches = data.workers * (PREFETCH + 1) + 2
    return {
        "index": INDEX_BYTES * pairs,
        "names": (ranks + ranks * data.workers) * shards * (NAME_BYTES + 5 * 8),
        "order": readers * (2 * windows + 3) * window * 8,
        "captions": readers * opened * min(pairs, PAIRS_PER_SHARD) * CAPTION_BYTES,
        "pixels": ranks * batches * batch,
        "processes": ranks * (RANK_BYTES + worker_bytes(data.workers) + gpu * GPU_RANK_BYTES),
        "weights": 4 * parameters * (ranks + 1),  # made in float32 on every rank's host, gathered by the first one
    }


def worker_bytes(workers: int) -> float:
    """Return what the loader's processes add to a rank's memory, without captions and batches."""
    return COPIED_BYTES + workers * WORKER_BYTES if workers else 0.0


def reader_groups_of_a_rank(groups: int, world_size: int) -> int:
    """Return from how many reader groups a rank's part of a batch comes.

    One, or several where there are fewer ranks.
    """
    return max(1, math.ceil(groups / world_size))


def to_ask_for(parts: dict[str, float]) -> int:
    """Return the megabytes that a job should ask for per node: the sum and a reserve, in whole gigabytes."""
    return math.ceil(SAFETY * sum(parts.values()) / 1e9) * 1000
