"""The order of an epoch: complete, without duplicates, shuffled, in proportion, and the same everywhere."""

import numpy as np
import pytest

from filip.loading.epoch_order import EpochOrder, group_length

COUNTS = np.array([7, 0, 30, 1, 12, 25, 25])


def order(counts: list[np.ndarray], weights: list[float], group: int = 0, step: int = 17, **options: int) -> np.ndarray:
    """Return all slots of a reader group [n, 3], asked for in steps as batches do."""
    settings = {"seed": 1, "epoch": 0, "shuffle_window_shards": 3} | options
    epoch = EpochOrder(counts, weights, **settings)  # type: ignore[arg-type]
    length = group_length(counts, weights, group, settings.get("reader_groups", 1))
    parts = [epoch.slots(group, at, min(at + step, length)) for at in range(0, length, step)]
    return np.concatenate([np.stack(part, axis=1) for part in parts])


def test_orders_differ_by_epoch_and_seed_only() -> None:
    first = order([COUNTS], [1.0])
    assert np.array_equal(first, order([COUNTS], [1.0]))
    assert not np.array_equal(first, order([COUNTS], [1.0], epoch=1))
    assert not np.array_equal(first, order([COUNTS], [1.0], seed=2))


def test_shuffling_is_thorough_within_a_window_and_stays_within() -> None:
    counts = np.full(40, 50)
    shard = order([counts], [1.0], shuffle_window_shards=4)[:, 1] // 50
    windows = [set(shard[i : i + 200]) for i in range(0, 2000, 200)]
    assert all(len(w) == 4 for w in windows)
    assert set.union(*windows) == set(range(40))
    assert sorted(min(w) for w in windows) != [min(w) for w in windows]  # shards are permuted
    within = shard[:200]
    assert (within[:-1] != within[1:]).mean() > 0.6  # 3/4 expected if independent


@pytest.mark.parametrize("reader_groups", [1, 2, 3, 7])
def test_reader_groups_share_every_sample_and_few_shards(reader_groups: int) -> None:
    counts = [np.full(50, 20), COUNTS]
    parts = [order(counts, [1.0, 1.0], group=i, reader_groups=reader_groups) for i in range(reader_groups)]
    together = np.concatenate(parts)
    assert len(np.unique(together, axis=0)) == len(together) == 1100
    assert [len(p) for p in parts] == [group_length(counts, [1.0, 1.0], i, reader_groups) for i in range(reader_groups)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 2
    for part in parts:
        shards = np.unique(part[part[:, 0] == 0, 1] // 20)
        assert len(shards) <= 50 / reader_groups + 2


def test_weights_are_passes_over_a_source() -> None:
    counts, weights = [np.array([40, 60]), COUNTS, np.array([10])], [2.5, 0.3, 0.0]
    slots = order(counts, weights)
    assert len(slots) == 280 == group_length(counts, weights, 0, 1)
    first = slots[slots[:, 0] == 0]
    for visit, expected in ((0, 100), (1, 100), (2, 50)):
        seen = first[first[:, 2] == visit, 1]
        assert len(np.unique(seen)) == len(seen) == expected
    assert (slots[:, 0] == 1).sum() == 30
    # another epoch, another part of a source that is seen in part
    later = order(counts, weights, epoch=1)
    assert set(later[later[:, 0] == 1, 1]) != set(slots[slots[:, 0] == 1, 1])
