"""The stream of pairs: right, complete, the same for any number of workers and ranks, resumable to the pair."""

from __future__ import annotations

import dataclasses
import errno
import gc
import hashlib
import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from filip.data.loading.config import DataConfig, Source, StreamConfig
from filip.data.loading.loader import PairLoader, build_loader
from filip.data.loading.transforms import EvalTransform
from filip.errors import UserError
from filip.tokenizer import tokenize
from tests.data.pair_shards import Pairs, key_of, number_of, write_pairs
from tests.support.shards import write_sidecar

pytestmark = pytest.mark.filterwarnings("ignore:.*worker processes in total")

COUNTS = [9, 1, 14, 0, 6]  # uneven, one without a pair: 30 pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return write_pairs(tmp_path_factory.mktemp("pairs"), COUNTS)


DATA_FIELDS = {field.name for field in dataclasses.fields(DataConfig)}


def loader(
    pairs: Pairs | list[Source], *, epoch: int = 0, transform: Any = None, **options: Any
) -> PairLoader:
    """A loader with small settings; options: fields of DataConfig and of StreamConfig."""
    settings = {
        "batch_size": 4,
        "image_size": 16,
        "seed": 3,
        "shuffle_window_shards": 2,
        "workers": 0,
    } | options
    data = {name: settings.pop(name) for name in list(settings) if name in DATA_FIELDS}
    sources = [pairs.source] if isinstance(pairs, Pairs) else pairs
    made = build_loader(StreamConfig(DataConfig(sources=sources, **data), **settings), transform=transform)
    if epoch:
        made.load_state_dict(made.state_dict() | {"epoch": epoch})
    return made


def keys(batches: list[dict[str, Any]]) -> list[str]:
    return [key for batch in batches for key in batch["key"]]


def assert_same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name, value in x.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, y[name]), name
            else:
                assert value == y[name], name


def test_a_batch_holds_what_belongs_together(pairs: Pairs) -> None:
    """The colour of the image tells which pair it is: key, caption and group must agree."""
    candidates = set()
    for batch in loader(pairs, transform=EvalTransform(16)):
        assert batch["pixels"].shape == (4, 3, 16, 16)
        assert (batch["pixels"].dtype, batch["ids"].dtype, batch["lengths"].dtype) == (
            torch.uint8,
            torch.int64,
            torch.int64,
        )
        assert batch["group"].dtype == torch.int64
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
    ranks = [
        list(loader(pairs, batch_size=2, rank=r, world_size=world_size, epoch=5)) for r in range(world_size)
    ]
    expected = 30 // (2 * world_size)
    assert [len(r) for r in ranks] == [expected] * world_size
    seen = keys(list(itertools.chain(*ranks)))
    assert len(seen) == len(set(seen)) == expected * 2 * world_size
    assert set(seen) <= set(pairs.keys)
    assert loader(pairs).pairs == 30


def test_every_pair_is_seen_within_few_epochs(pairs: Pairs) -> None:
    """What does not fill a last batch is another part in each epoch."""
    stream = loader(pairs)
    seen = set(keys(list(stream) + list(stream) + list(stream)))
    assert seen == set(pairs.keys)
    assert stream.epoch == 3


def test_a_global_batch_does_not_depend_on_the_ranks(pairs: Pairs) -> None:
    whole = list(loader(pairs, batch_size=6))
    for world_size in (2, 3):
        ranks = [
            list(loader(pairs, batch_size=6 // world_size, rank=r, world_size=world_size))
            for r in range(world_size)
        ]
        for batch, *parts in zip(whole, *ranks, strict=True):
            assert batch["key"] == list(itertools.chain(*(p["key"] for p in parts)))
            assert torch.equal(batch["pixels"], torch.cat([p["pixels"] for p in parts]))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_change_nothing(pairs: Pairs, workers: int) -> None:
    """Also with more workers than shards that hold something, and over two epochs."""
    alone, together = loader(pairs), loader(pairs, workers=workers)
    for _ in range(2):
        assert_same(list(alone), list(together))


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 0), (1, 3), (2, 2)])
def test_resume_goes_on_with_the_very_next_batch(pairs: Pairs, before: int, after: int) -> None:
    everything = list(loader(pairs))
    stop = 3
    first = loader(pairs, workers=before)
    batches = list(itertools.islice(first, stop))
    state = first.state_dict()
    assert_same(batches, everything[:stop])
    second = loader(pairs, workers=after)
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


def test_resume_with_other_data_is_refused(pairs: Pairs, tmp_path: Path) -> None:
    state = loader(pairs).state_dict()
    other = write_pairs(tmp_path / "other", [9, 1, 14, 0, 7])
    for stream in (loader(other), loader(pairs, seed=4), loader(pairs, shuffle_window_shards=3)):
        with pytest.raises(UserError, match="other data"):
            stream.load_state_dict(state)


def test_back_translation_draws_uniformly_and_leaves_the_image_alone(pairs: Pairs, tmp_path: Path) -> None:
    three = write_pairs(tmp_path / "three", [40], captions=3)
    drawn: Counter[int] = Counter()
    stream = loader(three, batch_size=40, auto_augment=False)
    plain = loader(three, batch_size=40, auto_augment=False, back_translation=False)
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
        batches = list(loader([pairs.source], batch_size=30, epoch=epoch, auto_augment=True))
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


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_replaced_and_counted(tmp_path: Path, workers: int) -> None:
    data = write_pairs(tmp_path / "broken", [10, 10])
    broken = [key_of(0, 2), key_of(0, 7), *(key_of(1, i) for i in range(10))]  # a whole shard among them
    for shard in (0, 1):
        blob = bytearray(data.tar(shard).read_bytes())
        for i in range(10):
            if key_of(shard, i) in broken:
                start = blob.index(key_of(shard, i).encode() + b".jpg") + 512
                blob[start : start + 300] = bytes(300)
        data.tar(shard).write_bytes(blob)
    stream = loader(data, batch_size=4, workers=workers)
    batches = list(stream)
    assert len(batches) == 5
    good = [key_of(0, i) for i in range(10) if key_of(0, i) not in broken]
    assert set(keys(batches)) == set(good)
    assert Counter(keys(batches)).total() == 20
    assert stream.counters["substituted"] == 12
    assert stream.counters["undecodable"] >= 12
    assert_same(batches, list(loader(data, batch_size=4)))
    state = stream.state_dict()
    assert state["counters"] == dict(stream.counters)


@pytest.mark.parametrize("workers", [0, 1])
def test_no_decodable_image_stops_with_a_plain_sentence(tmp_path: Path, workers: int) -> None:
    data = write_pairs(tmp_path / "broken", [5])
    blob = data.tar(0).read_bytes().replace(b"\xff\xd8\xff", b"\0\0\0")
    data.tar(0).write_bytes(blob)
    with pytest.raises(UserError, match=r"^50 images of .* cannot be decoded.*00000\.tar.* again$"):
        list(loader(data, workers=workers))


def test_a_process_ends_although_its_loader_s_workers_ignore_signals(pairs: Pairs) -> None:
    program = (
        "import sys\n"
        "from filip.data.loading.config import DataConfig, Source, StreamConfig\n"
        "from filip.data.loading.loader import build_loader\n"
        "data = DataConfig(sources=[Source(*sys.argv[1:])], workers=1, shuffle_window_shards=2)\n"
        "batches = iter(build_loader(StreamConfig(data, 4, 16)))\n"
        "next(batches)\n"
        "sys.kept = batches\n"  # as a traceback keeps it: nothing shuts the worker down before the exit
    )
    arguments = [str(pairs.source.shards), str(pairs.source.captions)]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=120)


def test_defects_of_the_shards_are_in_the_counters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_pairs(tmp_path / "defects", [10, 10, 10])
    data.sidecar(1).unlink()
    blob = data.tar(2).read_bytes()
    data.tar(2).write_bytes(blob[: len(blob) * 2 // 3])
    stream = loader(data, batch_size=2)
    missing = stream.counters["missing_image"]
    assert 0 < missing < 10
    assert stream.pairs == 20 - missing
    assert len(set(keys(list(stream)))) == (20 - missing) // 2 * 2
    assert dict(stream.counters) == {
        "shards_without_sidecar": 1,
        "missing_sidecar": 10,
        "shards_truncated": 1,
        "missing_image": missing,
    }
    assert "missing_sidecar" in caplog.text


def test_global_random_state_is_left_alone(pairs: Pairs) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    for workers in (0, 1):
        list(loader(pairs, workers=workers))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]


def test_workers_end_with_the_loader(pairs: Pairs) -> None:
    """Without the help of the garbage collector, which would wait five seconds for each worker."""
    stream = loader(pairs, workers=1)
    next(iter(stream))
    (worker,) = stream._loader._iterator._workers  # type: ignore[union-attr]
    gc.disable()
    try:
        del stream
        worker.join(3)
        assert not worker.is_alive()
    finally:
        gc.enable()


def test_captions_of_the_tar_serve_without_sidecars(pairs: Pairs) -> None:
    stream = loader([Source(pairs.source.shards)], transform=EvalTransform(16))
    batch = next(iter(stream))
    n = number_of(batch["pixels"][0], 30)
    assert batch["ids"][0, : batch["lengths"][0]].tolist() == tokenize(f"thing {n} 0")[0][0].tolist()


class Draws:
    """Stands in for the augmentation: records the random numbers that it was given."""

    image_size = 4

    def __init__(self) -> None:
        self.seen: list[float] = []

    def pixels(self, data: bytes, rng: random.Random) -> np.ndarray:
        self.seen.append(rng.random())
        return np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("window", "groups", "expected"),
    [(2, 1, "57de8ec06ac6297b"), (2, 2, "70ce50b3c608328e"), (3, 4, "bc9245c6822f8041")],
)
def test_batches_are_those_of_older_versions(tmp_path: Path, window: int, groups: int, expected: str) -> None:
    """Two epochs of two ranks and two sources: numbers computed with commit da902be."""
    first = write_pairs(tmp_path / "a", [9, 1, 14, 0, 6, 8])
    second = write_pairs(tmp_path / "b", [5, 5, 11, 2], captions=3).source
    sources = [first.source, Source(second.shards, second.captions, weight=1.5)]
    seen = hashlib.sha256()
    draws: list[float] = []
    options = {"seed": 9, "world_size": 2, "shuffle_window_shards": window, "reader_groups": groups}
    for epoch in range(2):
        for rank in range(2):
            recorder = Draws()
            for batch in loader(sources, rank=rank, epoch=epoch, transform=recorder, **options):
                content = (batch["key"], batch["group"].tolist(), batch["ids"].tolist())
                seen.update(repr(content).encode())
            draws += recorder.seen
    seen.update(repr(draws).encode())
    assert seen.hexdigest()[:16] == expected


def open_tars() -> int:
    """Descriptors of this process that are shards."""
    links = (os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())
    return sum(link.endswith(".tar") for link in links)


@pytest.mark.parametrize(("groups", "world_size"), [(1, 1), (8, 8), (8, 2)])
def test_open_shards_are_bounded_by_the_window_and_not_by_the_groups(
    tmp_path: Path, groups: int, world_size: int
) -> None:
    """A rank keeps a window of its own reader groups open, whatever groups other ranks read from."""
    data = write_pairs(tmp_path / "many", [2] * 160, size=8)
    options = {"shuffle_window_shards": 3, "reader_groups": groups, "transform": EvalTransform(8)}
    stream = loader(data, batch_size=8 // world_size, world_size=world_size, **options)
    before, most, opened = open_tars(), 0, set()
    open_shard = stream.stream._shard

    def watched(source: int, shard: int) -> Any:
        opened.add(shard)
        return open_shard(source, shard)

    stream.stream._shard = watched  # type: ignore[method-assign]
    for _ in stream:
        most = max(most, open_tars() - before)
    of_this_rank = groups // world_size
    assert most <= (3 + 1) * of_this_rank
    assert len(opened) >= 20 > most or world_size == 2


def test_a_window_beyond_the_limit_of_descriptors_still_reads(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "many", [1] * 120, size=8)
    code = (
        "import resource, sys; import torch\n"
        "from filip.data.loading.config import DataConfig, Source, StreamConfig\n"
        "from filip.data.loading.loader import build_loader\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "data = DataConfig(sources=[Source(*sys.argv[1:])], workers=0, shuffle_window_shards=120)\n"
        "print(sum(len(batch['key']) for batch in build_loader(StreamConfig(data, 8, 8))))\n"
    )
    arguments = [sys.executable, "-c", code, data.source.shards, str(data.source.captions)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "120", done.stderr


def test_a_disk_that_fails_is_no_broken_image(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """It used to be replaced by another image, and counted as undecodable."""

    def fails(*_: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    stream = loader(pairs)
    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(UserError, match=r"cannot read .* of the shard .*\.tar: Input/output error"):
        next(iter(stream))


def test_too_many_open_files_is_not_a_broken_side_car(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The advice was to delete it."""

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    stream = loader(pairs)
    monkeypatch.setattr("filip.data.loading.pair_index.pq.read_table", fails)
    with pytest.raises(UserError, match=r"cannot open the side-car .*: Too many open files$"):
        next(iter(stream))


def test_mistakes_are_named(pairs: Pairs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="30 pairs do not fill"):
        loader(pairs, batch_size=16, world_size=2)
    with pytest.raises(UserError, match=r"data\.sources is empty"):
        loader([])
    with pytest.raises(UserError, match="weight -1"):
        loader([Source("x", weight=-1.0)])
    with pytest.raises(UserError, match="no shards"):
        loader([Source(str(tmp_path))])
