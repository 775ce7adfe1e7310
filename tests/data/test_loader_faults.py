"""A loader meets broken data, failing disks and its limits, and its workers end."""

import contextlib
import errno
import gc
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from filip.common.errors import DamagedFileError, UserError
from filip.images.eval_transform import EvalTransform
from filip.loading import loader as loading
from filip.loading.config import Source
from tests.data.pair_shards import Pairs, assert_same, key_of, keys, loader, write_pairs
from tests.support.processes import run_well

pytestmark = pytest.mark.filterwarnings("ignore:.*worker processes in total")


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
    assert stream.state_dict()["counters"] == dict(stream.counters)


def test_many_replaced_images_are_told_with_shard_and_rank_and_more_end_the_training(tmp_path: Path) -> None:
    data = write_pairs(tmp_path, [100] * 10, size=8)
    expected = list(loader(data, batch_size=100))
    whole = data.tar(7).read_bytes()
    for broken, shares in ((5, (0, 0)), (30, (1, 0)), (100, (1, 1))):
        data.tar(7).write_bytes(whole.replace(b"\xff\xd8\xff", b"\0\0\0", broken))
        others = [data.tar(n) for n in range(7)] if broken == 100 else []
        kept = [tar.read_bytes() for tar in others]
        for tar, content in zip(others, kept, strict=True):
            tar.write_bytes(content.replace(b"\xff\xd8\xff", b"\0\0\0", 20))
        stream = loader(data, batch_size=50, rank=1, world_size=2, shuffle_window_shards=16)
        list(stream)
        if shares == (1, 1):
            with pytest.raises(DamagedFileError, match=r"of 500 images on rank 1 .* in .*/00007\.tar\. Rest"):
                stream.damage()
        else:
            sentence = stream.damage() or ""
            assert bool(sentence) == bool(shares[0]) and ("00007.tar" in sentence) == bool(shares[0])
        assert stream.damage() is None, "an answer counts from the last one"
        for tar, content in zip(others, kept, strict=True):
            tar.write_bytes(content)
    data.tar(7).write_bytes(whole)
    assert_same(list(loader(data, batch_size=100)), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_tar_that_is_cut_under_the_training_is_no_broken_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(loading, "PAUSES", (0, 0))
    data = write_pairs(tmp_path, [10])
    stream = loader(data, workers=workers)
    os.truncate(data.tar(0), data.tar(0).stat().st_size // 3)
    with pytest.raises(DamagedFileError, match=r"^cannot read the shard .*/00000\.tar: it ends after \d+ of"):
        list(stream)


@pytest.mark.parametrize("workers", [0, 1])
def test_no_decodable_image_stops_with_a_plain_sentence(tmp_path: Path, workers: int) -> None:
    data = write_pairs(tmp_path / "broken", [5])
    blob = data.tar(0).read_bytes().replace(b"\xff\xd8\xff", b"\0\0\0")
    data.tar(0).write_bytes(blob)
    with pytest.raises(UserError, match=r"^50 images of .* cannot be decoded.*00000\.tar.* again$"):
        list(loader(data, workers=workers))


@pytest.mark.slow
def test_a_process_ends_although_its_loader_s_workers_ignore_signals(pairs: Pairs) -> None:
    program = (
        "import sys\n"
        "from filip.loading.config import DataConfig, Source, StreamConfig\n"
        "from filip.loading.loader import build_loader\n"
        "data = DataConfig(sources=[Source(*sys.argv[1:])], workers=1, shuffle_window_shards=2)\n"
        "batches = iter(build_loader(StreamConfig(data, 4, 16)))\n"
        "next(batches)\n"
        "sys.kept = batches\n"  # as a traceback keeps it: nothing shuts the worker down before the exit
    )
    arguments = [str(pairs.source.shards), str(pairs.source.captions)]
    run_well("-c", program, *arguments, timeout=120)


def test_defects_of_the_shards_are_in_the_counters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_pairs(tmp_path / "defects", [10, 10])
    data.sidecar(1).unlink()
    stream = loader(data, batch_size=2)
    assert stream.pairs == len(set(keys(list(stream)))) == 10
    assert dict(stream.counters) == {"shards_without_sidecar": 1, "missing_sidecar": 10}
    assert "missing_sidecar" in caplog.text


def test_workers_end_with_the_loader(pairs: Pairs) -> None:
    """They end without the help of the garbage collector, which would wait five seconds for each worker."""
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


def open_tars() -> int:
    """Count the descriptors of this process that are shards."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile, by another thread
            count += os.readlink(link).endswith(".tar")
    return count


@pytest.mark.parametrize(("groups", "world_size"), [(1, 1), (8, 8), (8, 2)])
def test_open_shards_are_bounded_by_the_window(tmp_path: Path, groups: int, world_size: int) -> None:
    """A rank keeps a window of its reader groups open, whatever groups other ranks read from."""
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


@pytest.mark.slow
def test_a_window_beyond_the_limit_of_descriptors_still_reads(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "many", [1] * 120, size=8)
    code = (
        "import resource, sys; import torch\n"
        "from filip.loading.config import DataConfig, Source, StreamConfig\n"
        "from filip.loading.loader import build_loader\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "data = DataConfig(sources=[Source(*sys.argv[1:])], workers=0, shuffle_window_shards=120)\n"
        "print(sum(len(batch['key']) for batch in build_loader(StreamConfig(data, 8, 8))))\n"
    )
    assert run_well("-c", code, data.source.shards, str(data.source.captions)).stdout.strip() == "120"


@pytest.mark.parametrize("times", [2, 3])
def test_a_disk_that_fails_is_asked_three_times(pairs: Pairs, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Its image is no broken one, which another would replace; and a stale handle needs a new one."""
    handles, read = [], os.pread

    def fails(file: int, *rest: Any) -> bytes:
        handles.append(file)
        if len(handles) > times:
            return read(file, *rest)
        raise OSError(errno.ESTALE, "Stale file handle")

    expected, stream = next(iter(loader(pairs))), loader(pairs)
    monkeypatch.setattr(loading, "PAUSES", (0, 0))
    monkeypatch.setattr(os, "pread", fails)
    if times == 2:
        assert_same([next(iter(stream))], [expected])
        return
    with pytest.raises(UserError, match=r"cannot read the shard .*\.tar: Stale file handle$"):
        next(iter(stream))


def test_a_shard_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_pairs(tmp_path / "gone", [5])
    stream = loader(data)
    data.tar(0).unlink()
    monkeypatch.setattr(loading, "PAUSES", (0, 0))
    with pytest.raises(UserError, match=r"cannot read the shard .*00000\.tar: No such file or directory$"):
        next(iter(stream))


def test_too_many_open_files_is_not_a_broken_side_car(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The advice was to delete it."""

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    stream = loader(pairs)
    monkeypatch.setattr(loading, "PAUSES", (0, 0))
    monkeypatch.setattr("filip.loading.pair_index.whole_file", fails)
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
