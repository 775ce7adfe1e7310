"""The stream of pairs: right, complete, the same for any number of workers and ranks."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from filip.common.errors import UserError
from filip.images.eval_transform import EvalTransform
from filip.loading.config import Source
from filip.text.tokenizer import tokenize
from tests.data.pair_shards import Pairs, assert_same, key_of, keys, loader, number_of, write_pairs
from tests.support.shards import write_sidecar

pytestmark = pytest.mark.filterwarnings("ignore:.*worker processes in total")


def test_a_batch_holds_what_belongs_together(pairs: Pairs) -> None:
    """The colour of the image tells which pair it is: key, caption and group must agree."""
    candidates = set()
    for batch in loader(pairs, transform=EvalTransform(16)):
        assert batch["pixels"].shape == (4, 3, 16, 16)
        assert batch["pixels"].dtype == torch.uint8
        assert {batch[name].dtype for name in ("ids", "lengths", "group")} == {torch.int64}
        for i in range(4):
            n = number_of(batch["pixels"][i], 30)
            assert batch["key"][i] == pairs.keys[n]
            assert batch["group"][i] == n // 2
            ids = batch["ids"][i, : batch["lengths"][i]].tolist()
            texts = [f"thing {n} {c}" for c in range(2)]
            candidate = [tokenize(t)[0][0].tolist() for t in texts].index(ids)
            candidates.add(candidate)
            assert not batch["ids"][i, batch["lengths"][i] :].any()
    assert candidates == {0, 1}


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_an_epoch_without_loss_or_duplicates(pairs: Pairs, world_size: int) -> None:
    ranks = [list(loader(pairs, batch_size=2, rank=r, world_size=world_size, epoch=5)) for r in range(world_size)]
    expected = 30 // (2 * world_size)
    assert [len(r) for r in ranks] == [expected] * world_size
    seen = keys(list(itertools.chain(*ranks)))
    assert len(seen) == len(set(seen)) == expected * 2 * world_size
    assert set(seen) <= set(pairs.keys)
    assert loader(pairs).pairs == 30


def test_a_global_batch_does_not_depend_on_the_ranks(pairs: Pairs) -> None:
    whole = list(loader(pairs, batch_size=6, augment_on="device"))
    for world_size in (2, 3):
        shape = {"batch_size": 6 // world_size, "world_size": world_size, "augment_on": "device"}
        ranks = [list(loader(pairs, rank=r, **shape)) for r in range(world_size)]
        for batch, *parts in zip(whole, *ranks, strict=True):
            assert batch["key"] == list(itertools.chain(*(p["key"] for p in parts)))
            for column in range(2):  # pixels and draws
                assert torch.equal(batch["pixels"][column], torch.cat([p["pixels"][column] for p in parts]))


@pytest.mark.parametrize(("workers", "place"), [(1, "worker"), (2, "worker"), (2, "device"), (5, "worker")])
def test_workers_change_nothing(pairs: Pairs, workers: int, place: str) -> None:
    """This holds with more workers than shards that hold something, and over two epochs."""
    alone, together = loader(pairs, augment_on=place), loader(pairs, workers=workers, augment_on=place)
    for _ in range(2):
        assert_same(list(alone), list(together))


def test_back_translation_draws_uniformly_and_leaves_the_image_alone(pairs: Pairs, tmp_path: Path) -> None:
    three = write_pairs(tmp_path / "three", [40], captions=3)
    drawn: Counter[int] = Counter()
    stream = loader(three, batch_size=40, auto_augment=0)
    plain = loader(three, batch_size=40, auto_augment=0, back_translation=False)
    for _ in range(15):
        (batch,), (original,) = list(stream), list(plain)
        assert torch.equal(batch["pixels"], original["pixels"])
        for i, key in enumerate(batch["key"]):
            n = int(key)
            texts = [tokenize(f"thing {n} {c}")[0][0].tolist() for c in range(3)]
            drawn[texts.index(batch["ids"][i, : batch["lengths"][i]].tolist())] += 1
            assert original["ids"][i, : original["lengths"][i]].tolist() == texts[0]
    expected = 15 * 40 / 3
    chi_squared = sum((drawn[c] - expected) ** 2 / expected for c in range(3))
    assert chi_squared < 13.8  # p = 0.001 at two degrees of freedom


def test_augmentation_differs_by_epoch_and_visit(pairs: Pairs) -> None:
    by_epoch = []
    for epoch in range(2):
        batches = list(loader([pairs.source], batch_size=30, epoch=epoch, auto_augment=1))
        by_epoch.append({k: p for b in batches for k, p in zip(b["key"], b["pixels"], strict=True)})
    changed = [not torch.equal(by_epoch[0][k], by_epoch[1][k]) for k in pairs.keys]
    assert sum(changed) > 15
    twice = Source(pairs.source.shards, pairs.source.captions, weight=2.0)
    (batch,) = list(loader([twice], batch_size=60))
    assert Counter(batch["key"]) == dict.fromkeys(pairs.keys, 2)
    visits: dict[str, list[torch.Tensor]] = {}
    for key, image in zip(batch["key"], batch["pixels"], strict=True):
        visits.setdefault(key, []).append(image)
    assert sum(not torch.equal(a, b) for a, b in visits.values()) > 15


def test_sources_are_mixed_by_weight(pairs: Pairs, tmp_path: Path) -> None:
    second = write_pairs(tmp_path / "b", [200], size=32)
    write_sidecar(second.sidecar(0), [(key_of(0, i), ["another"], -1 - i) for i in range(200)])
    half = Source(second.source.shards, second.source.captions, weight=0.45)
    stream = loader([pairs.source, half], batch_size=12)
    assert stream.pairs == 30 + 90
    batches = list(stream)
    assert len(batches) == 10
    for batch in batches:
        assert (batch["group"] < 0).sum() == 9  # 90 of 120 pairs, in every batch


def test_reader_groups_keep_ranks_on_shards_of_their_own(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "reader_groups", [5] * 8)
    ranks = [
        list(loader(data, batch_size=4, rank=r, world_size=2, reader_groups=2, transform=EvalTransform(16)))
        for r in (0, 1)
    ]
    shards = [{key[:5] for key in keys(batches)} for batches in ranks]
    assert not shards[0] & shards[1]
    assert sorted(keys(ranks[0] + ranks[1])) == data.keys
    one = list(loader(data, batch_size=8, reader_groups=2, transform=EvalTransform(16)))
    assert [b["key"] for b in one] == [a["key"] + b["key"] for a, b in zip(*ranks, strict=True)]
    with pytest.raises(UserError, match=r"reader_groups=3"):
        loader(data, batch_size=8, reader_groups=3)


def test_global_random_state_is_left_alone(pairs: Pairs) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    for workers in (0, 1):
        list(loader(pairs, workers=workers))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 0), (1, 3), (2, 2)])
def test_resume_goes_on_with_the_very_next_batch(pairs: Pairs, before: int, after: int) -> None:
    place, stop = "device" if before == 2 else "worker", 3
    everything = list(loader(pairs, augment_on=place))
    first = loader(pairs, workers=before, augment_on=place)
    batches = list(itertools.islice(first, stop))
    state = first.state_dict()
    assert_same(batches, everything[:stop])
    second = loader(pairs, workers=after, augment_on=place)
    second.load_state_dict(state)
    assert_same(list(second), everything[stop:])
    assert second.epoch == 1


def test_resume_at_every_batch_and_across_epochs(pairs: Pairs) -> None:
    plain = loader(pairs)
    stream = list(plain) + list(plain) + list(plain)
    assert len({tuple(keys(stream[i : i + 7])) for i in (0, 7, 14)}) == 3
    going = loader(pairs)
    states = [going.state_dict()]
    for _ in range(3):
        for _ in going:
            states.append(going.state_dict())
    for i, state in enumerate(states):
        resumed = loader(pairs)
        resumed.load_state_dict(state)
        rest = [batch for _ in range(3) for batch in resumed]
        assert_same(rest[: len(stream) - i], stream[i:])


def test_resume_under_another_world_size(pairs: Pairs) -> None:
    """Two ranks stop after a batch; one rank with the same global batch continues with the pairs that follow."""
    two = [loader(pairs, batch_size=3, rank=r, world_size=2) for r in range(2)]
    for part in two:
        next(iter(part))
    assert two[0].state_dict() == two[1].state_dict()
    one = loader(pairs, batch_size=6)
    one.load_state_dict(two[0].state_dict())
    assert_same(list(one), list(loader(pairs, batch_size=6))[1:])
    odd = loader(pairs, batch_size=4)
    with pytest.raises(UserError, match="global batch 4"):
        odd.load_state_dict(two[0].state_dict())


def test_files_that_have_changed_are_told_where_no_manifest_would(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = write_pairs(tmp_path, [9, 7])
    state = loader(pairs).state_dict()
    loader(pairs).load_state_dict(state)
    assert not caplog.messages
    write_pairs(tmp_path, [9, 7], size=24)  # other images, as many, under the same names
    loader(pairs).load_state_dict(state)
    (message,) = caplog.messages
    assert f"{tmp_path / 'shards'} or its side-cars have changed" in message and "manifest" in message


def test_resume_with_other_data_is_refused(pairs: Pairs, tmp_path: Path) -> None:
    state = loader(pairs).state_dict()
    other = write_pairs(tmp_path / "other", [9, 1, 14, 0, 7])
    for stream in (loader(other), loader(pairs, seed=4), loader(pairs, shuffle_window_shards=3)):
        with pytest.raises(UserError, match="other data"):
            stream.load_state_dict(state)
