"""The tar scan against Python's tarfile; the index and what it counts."""

import contextlib
import io
import os
import signal
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from filip.common.errors import DamagedFileError, UserError
from filip.common.tar_index import scan_tar
from filip.data.shard_index import index_path, shard_index
from filip.data.sidecar import group_id
from filip.loading.config import Source
from filip.loading.pair_index import ShardCaptions, index_source
from filip.loading.tar_cache import TarCache
from tests.data.pair_shards import key_of, write_pairs
from tests.support.shards import write_sidecar


def write_tar(path: Path, files: dict[str, bytes], kind: int, seed: int = 0) -> None:
    """Write files, and among them members of all other types, with names and links of any length."""
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w", format=kind) as tar:
        for number, (name, data) in enumerate(files.items()):
            for _ in range(rng.integers(0, 4)):
                other = tarfile.TarInfo("some/folder" + "ü" * int(rng.choice([0, 5, 90, 200])))
                other.type, other.linkname = rng.choice(OTHERS).tobytes(), "elsewhere" + "x" * int(rng.choice([0, 150]))
                other.size = int(rng.choice([0, 700]))  # which has no bytes behind it
                with contextlib.suppress(ValueError):  # too long for USTAR
                    tar.addfile(other)
            info = tarfile.TarInfo(name)
            info.type = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)[(number + seed) % 3]
            info.size, info.mtime = len(data), 1.5  # a fractional time makes a pax header
            tar.addfile(info, io.BytesIO(data))


OTHERS = np.array(
    [tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_scan_equals_tarfile(tmp_path: Path, kind: int) -> None:
    """300 tars of random members of every type that ``tarfile`` writes."""
    names = ["a.jpg", "a.txt", "x/y.z/b.tar.gz", "d" * 90 + "/" + "e" * 60 + ".png", "empty.txt", "last"]
    names += (
        [] if kind == tarfile.USTAR_FORMAT else ["f" * 180 + ".jpg", "ünïcödé 名前.png", "ü" * 99, "g" * 100, "after"]
    )
    path = tmp_path / "x.tar"
    for seed in range(100):
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(names)[: rng.integers(1, len(names) + 1)]
        files = {str(n): rng.bytes(rng.choice([0, 1, 511, 512, 513, 1024, 5000])) for n in chosen}
        write_tar(path, files, kind, seed)
        members, defect = scan_tar(path)
        data = path.read_bytes()
        with tarfile.open(path) as tar:
            expected = [(m.name, tar.extractfile(m).read()) for m in tar if m.isreg()]  # type: ignore[union-attr]
        assert [(m.name, data[m.offset : m.offset + m.size]) for m in members] == expected, seed
        assert dict(expected) == files and defect is None


def test_scan_of_damaged_tars(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_tar(path, {f"{i}.jpg": bytes([i]) * 700 for i in range(1, 6)}, tarfile.GNU_FORMAT)
    whole = path.read_bytes()
    start = [m.offset for m in scan_tar(path)[0]]
    path.write_bytes(whole[: start[3] + 100])  # within the fourth file
    members, defect = scan_tar(path)
    assert ([m.name for m in members], defect) == (["1.jpg", "2.jpg", "3.jpg"], "truncated")
    path.write_bytes(whole[: start[3] - 512])  # between two files
    assert (len(scan_tar(path)[0]), scan_tar(path)[1]) == (3, "truncated")
    path.write_bytes(whole[: start[2] - 512] + os.urandom(len(whole) - start[2] + 512))
    assert (len(scan_tar(path)[0]), scan_tar(path)[1]) == (2, "corrupt")
    path.write_bytes(b"")
    assert scan_tar(path) == ([], "empty")
    assert scan_tar(tmp_path / "absent.tar") == ([], "unreadable")


def test_everything_that_is_missing_is_counted(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path, [6, 6, 6])
    rows = [(key_of(0, i), ["a"], 0) for i in range(4)] + [("999", ["no image"], 0), ("998", ["none"], 0)]
    write_sidecar(pairs.sidecar(0), rows)  # two images without a row, two rows without an image
    pairs.sidecar(1).unlink()
    write_sidecar(pairs.sidecar(2), [(key_of(2, i), ["a"] if i else [], 0) for i in range(6)])
    index = index_source(pairs.source)
    assert index.counts.tolist() == [4, 0, 5]
    assert dict(index.problems) == {
        "not_in_sidecar": 2,
        "missing_image": 2,
        "shards_without_sidecar": 1,
        "missing_sidecar": 6,
        "missing_caption": 1,
    }


@pytest.mark.parametrize("captions", [True, False])
@pytest.mark.parametrize("damage", ["cut", "zeroed", "all zeros", "flipped header", "zeroed header", "empty", "fewer"])
def test_a_damaged_shard_is_named_and_none_of_it_is_used(tmp_path: Path, damage: str, captions: bool) -> None:
    """Put back it is used again."""
    pairs = write_pairs(tmp_path, [6, 6])
    source = pairs.source if captions else Source(pairs.source.shards)
    tar, header = pairs.tar(1), scan_tar(pairs.tar(1))[0][9].offset - 512
    content = whole = tar.read_bytes()
    half, end = len(whole) // 2, len(whole)
    if damage == "fewer":  # the tar is whole, and not the one that was written
        stats = tar.with_name("00001_stats.json")
        stats.write_text('{"successes": 7}')
    spans = {"zeroed": (half, half + 4000), "all zeros": (0, end), "zeroed header": (header, header + 512)}
    if damage in spans:
        first, last = spans[damage]
        content = whole[:first] + bytes(last - first) + whole[last:]
    elif damage == "flipped header":
        content = whole[: header + 3] + bytes([whole[header + 3] ^ 4]) + whole[header + 4 :]
    elif damage != "fewer":
        content = whole[: half if damage == "cut" else 0]
    tar.write_bytes(content)
    with pytest.raises(DamagedFileError, match=rf"the shard {tar} is damaged: ") as raised:
        index_source(source)
    assert raised.value.exit_code == 74
    tar.write_bytes(whole)
    if damage == "fewer":
        stats.unlink()
    assert index_source(source).counts.tolist() == [6, 6]


def test_captions_from_the_tar(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path, [3, 2])
    index = index_source(Source(pairs.source.shards))
    captions = ShardCaptions.from_tar(index.tars[1], TarCache(tmp_path, 1))
    rows = index.row[3:]
    assert [captions.text(r, 0.9, True) for r in rows] == ["thing 3 0", "thing 4 0"]
    assert [captions.key(int(r)) for r in rows] == [key_of(1, 0), key_of(1, 1)]
    assert captions.group[rows[0]] == group_id("THING  3 0.")
    assert captions.group[rows[0]] != captions.group[rows[1]]


@pytest.mark.parametrize("change", ["grown", "touched", "index broken", "index of another shard"])
def test_a_stale_shard_index_is_made_anew(tmp_path: Path, change: str) -> None:
    pairs, other = write_pairs(tmp_path / "a", [3]), write_pairs(tmp_path / "b", [4])
    tar, index = pairs.tar(0), index_path(pairs.tar(0))
    shard_index(tar)
    if change == "grown":
        tar.write_bytes(other.tar(0).read_bytes())
    elif change == "touched":
        content, stat = other.tar(0).read_bytes()[: tar.stat().st_size], tar.stat()
        tar.write_bytes(content)
        os.utime(tar, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif change == "index broken":
        index.write_bytes(b"PAR1 nonsense")
    else:
        shard_index(other.tar(0))
        index.write_bytes(index_path(other.tar(0)).read_bytes())
    members, defect = scan_tar(tar)
    found = shard_index(tar)
    assert found.offsets == [m.offset for m in members] and found.sizes == [m.size for m in members]
    assert found.defect == defect


def test_all_who_ask_share_one_join_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = write_pairs(tmp_path, [3, 4])
    pairs.sidecar(1).unlink()
    first = index_source(pairs.source)
    with monkeypatch.context() as patch:
        patch.delattr("filip.loading.pair_index._index_shard")
        second = index_source(pairs.source)
    for index in (first, second):
        assert all(isinstance(array, np.memmap) for array in (index.offset, index.size, index.row))
    for name in ("offset", "size", "row", "counts"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert second.problems == first.problems == {"shards_without_sidecar": 1, "missing_sidecar": 4}
    write_sidecar(pairs.sidecar(1), [(key_of(1, 2), ["now"], 5)])
    assert index_source(pairs.source).counts.tolist() == [3, 1]
    folder = Path(pairs.source.captions or "") / "_index"
    assert len(list(folder.glob("*-*"))) == 1, "the stale one is gone"


def test_a_read_only_data_set_is_indexed_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = write_pairs(tmp_path / "data", [3, 4])
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    # a test may run as root, who may write anywhere
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert len(index_source(pairs.source)) == 7
    assert len(list((tmp_path / "tmp").glob("filip-index-*/*-*"))) == 1


def killed(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_scanner_is_an_error_and_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = write_pairs(tmp_path, [1, 1, 1])
    monkeypatch.setattr("filip.loading.pair_index._index_shard", killed)
    with pytest.raises(UserError, match="was killed"):
        index_source(pairs.source, processes=2)


def test_nothing_to_train_on_is_said_before_training(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path, [3])
    with pytest.raises(UserError, match=r"no shards: .*nowhere is not a folder"):
        index_source(Source(str(tmp_path / "nowhere")))
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"bare has no \*\.tar"):
        index_source(Source(str(tmp_path / "bare")))
    with pytest.raises(UserError, match=r"bare has no \*\.parquet"):
        index_source(Source(pairs.source.shards, str(tmp_path / "bare")))
    write_sidecar(pairs.sidecar(0), [("other", ["x"], 0)])
    with pytest.raises(UserError, match="3 not_in_sidecar"):
        index_source(pairs.source)
    pairs.sidecar(0).write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match=r"00000\.parquet"):
        index_source(pairs.source)
