"""What lies where in a source's shards: an index of the tars, joined by key with the caption side-cars.

Tars are scanned header by header and never unpacked; a sample is then one ``pread``. Whatever a shard lacks
is counted here, before training starts. At the scale of hundreds of millions of pairs the scan takes a
while: with a cache folder it is done once, and all processes of a machine share one copy of the arrays.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import multiprocessing
import os
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filip.data.loading.config import Source
from filip.data.loading.tar_index import Member, scan_tar
from filip.errors import UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_ARRAYS = ("offset", "size", "row", "counts")


@dataclass
class SourceIndex:
    """Where each usable sample of a source is; arrays have one entry per sample, in tar order."""

    source: Source
    tars: list[Path]
    offset: np.ndarray  # int64, bytes
    size: np.ndarray  # int32, bytes
    row: np.ndarray  # int32: row of the side-car, or number of the .txt member
    counts: np.ndarray  # int64 [shards]: samples per shard
    problems: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.starts = np.cumsum(self.counts) - self.counts  # int64 [shards]: first sample of each shard

    def __len__(self) -> int:
        return len(self.offset)

    def shard_of(self, sample: int) -> int:
        return int(np.searchsorted(self.starts, sample, side="right")) - 1


def index_source(source: Source, cache: str | Path | None = None, processes: int = 1) -> SourceIndex:
    """Scan a source (about 200,000 files per second and process).

    With ``cache``, a folder, the scan is done by one process of all that ask, and read from there by the others
    and at later starts, until a file changes. UserError if there is nothing to train on; lesser defects are
    counted in ``problems``.
    """
    tars = _find_tars(source)
    if cache is None:
        return _scan_source(source, tars, processes)
    entry = Path(cache) / _identity(source, tars)
    entry.parent.mkdir(parents=True, exist_ok=True)
    with open(entry.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not entry.is_dir():
            index = _scan_source(source, tars, processes)
            _store(index, entry)
            return index
    arrays = {name: np.load(entry / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    problems = Counter(json.loads((entry / "problems.json").read_text()))
    return SourceIndex(source, tars, **arrays, problems=problems)


def _scan_source(source: Source, tars: list[Path], processes: int) -> SourceIndex:
    if processes > 1 and len(tars) > processes:
        context = multiprocessing.get_context("fork")  # a spawned process would import torch for seconds
        try:
            # not multiprocessing.Pool, which waits for ever for a worker that was killed
            with ProcessPoolExecutor(processes, context) as pool:
                parts = list(pool.map(functools.partial(_index_shard, source), tars, chunksize=4))
        except BrokenProcessPool as error:
            raise UserError(
                f"a process that scanned the shards of {source.shards} was killed (out of memory?): start again, "
                "with fewer workers if memory is short"
            ) from error
    else:
        parts = [_index_shard(source, tar) for tar in tars]
    problems = +sum((part[3] for part in parts), Counter())
    counts = np.array([len(part[0]) for part in parts], np.int64)
    if not counts.sum():
        raise UserError(
            f"no usable pair in the {len(tars)} shards of {source.shards}: {dict(problems)}; do the "
            f"side-cars in {source.captions} belong to these shards?"
        )
    offset, size, row = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return SourceIndex(source, tars, offset, size, row, counts, problems)


def split_key(name: str) -> tuple[str, str]:
    """webdataset's rule: the key ends at the first dot of the last path component."""
    folder, slash, base = name.rpartition("/")
    key, _, suffix = base.partition(".")
    return folder + slash + key, suffix


def sidecar_path(source: Source, tar: Path) -> Path:
    """The side-car of a shard: the same number, in the captions folder."""
    return Path(source.captions or "") / f"{tar.stem}.parquet"


def _find_tars(source: Source) -> list[Path]:
    folder = Path(source.shards)
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise UserError(
            f"no shards: {folder} {'has no *.tar' if folder.is_dir() else 'is not a folder'}; "
            "give the folder that the download stage wrote (data.sources=[{shards: …, captions: …}])"
        )
    if source.captions is not None and not any(Path(source.captions).glob("*.parquet")):
        raise UserError(
            f"no caption side-cars: {source.captions} has no *.parquet; give the folder that the translation "
            "stage wrote, or captions: null to read the .txt files in the tars"
        )
    return tars


def _index_shard(source: Source, tar: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, Counter[str]]:
    """Offset, size and row of each usable sample of a shard, and what is wrong with the others."""
    problems: Counter[str] = Counter()
    members, defect = scan_tar(tar)
    if defect is not None:
        problems[f"shards_{defect}"] += 1
    images: dict[str, Member] = {}
    texts: dict[str, int] = {}
    for number, member in enumerate(members):
        key, suffix = split_key(member.name)
        if suffix == "txt":
            texts[key] = number
        elif suffix.lower() in IMAGE_SUFFIXES:
            images[key] = member
    keys = list(images)
    if source.captions is None:
        rows = np.array([texts.get(key, -1) for key in keys], np.int32)
        problems["missing_caption"] += int((rows < 0).sum())
        problems["missing_image"] += len(texts.keys() - images.keys())
    else:
        rows = _sidecar_rows(sidecar_path(source, tar), keys, problems)
    used = rows >= 0
    offset = np.array([m.offset for m in images.values()], np.int64)
    size = np.array([m.size for m in images.values()], np.int32)
    return offset[used], size[used], rows[used], problems


def _sidecar_rows(path: Path, keys: list[str], problems: Counter[str]) -> np.ndarray:
    """Row of each key in the side-car, -1 where it has none (or no caption)."""
    nowhere = np.full(len(keys), -1, np.int32)
    if not path.exists():
        problems["shards_without_sidecar"] += 1
        problems["missing_sidecar"] += len(keys)
        return nowhere
    captions = ShardCaptions.from_sidecar(path)
    rows = pc.index_in(pa.array(keys, captions.keys.type), value_set=captions.keys)
    found = rows.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    problems["not_in_sidecar"] += int((found < 0).sum())
    problems["missing_image"] += len(captions.keys) - int((found >= 0).sum())
    empty = (found >= 0) & (captions.counts[found] == 0) if len(captions.counts) else found >= 0
    problems["missing_caption"] += int(empty.sum())
    return np.where(empty, nowhere, found)


def _identity(source: Source, tars: list[Path]) -> str:
    """A name that changes with any file of the source (by name, size and time of change)."""
    files = [*tars, *(sidecar_path(source, tar) for tar in tars if source.captions is not None)]
    stats = [(str(f), *((s.st_size, s.st_mtime_ns) if (s := _stat(f)) else ())) for f in files]
    return "index-" + hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _store(index: SourceIndex, entry: Path) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f"{entry.name}.", dir=entry.parent))
    for name in _ARRAYS:
        np.save(temporary / f"{name}.npy", getattr(index, name))
    (temporary / "problems.json").write_text(json.dumps(index.problems))
    os.replace(temporary, entry)


class ShardCaptions:
    """Candidate captions, group and key of each row of a shard's side-car (or of each .txt in a tar)."""

    def __init__(self, keys: pa.Array, captions: pa.Array, group: np.ndarray) -> None:
        self.keys = keys  # string
        self.captions = captions  # list<string>
        self.group = group  # int64
        self.counts = pc.list_value_length(captions).fill_null(0).to_numpy(zero_copy_only=False)

    def key(self, row: int) -> str:
        return self.keys[row].as_py()

    def text(self, row: int, draw: float) -> str:
        """The candidate at the share ``draw`` (0 <= draw < 1) of the row's captions; 0 is the original."""
        return self.captions[row][int(draw * int(self.counts[row]))].as_py() or ""

    @staticmethod
    def from_sidecar(path: Path) -> ShardCaptions:
        """UserError if the file is not a side-car."""
        try:
            table = pq.read_table(path, columns=["key", "captions", "group"])
            keys, captions, group = (_whole(table.column(name)) for name in ("key", "captions", "group"))
            return ShardCaptions(keys, captions, group.to_numpy(zero_copy_only=False).astype(np.int64))
        except (OSError, pa.ArrowException, KeyError) as error:
            raise UserError(
                f"cannot read the side-car {path} (columns key, captions, group): {error}; "
                "delete it and run the translation stage again"
            ) from error

    @staticmethod
    def from_tar(path: Path) -> ShardCaptions:
        """One row per member; only the rows of .txt members mean anything."""
        keys, texts = [], []
        with open(path, "rb") as file:
            for member in scan_tar(path)[0]:
                key, suffix = split_key(member.name)
                text = ""
                if suffix == "txt":
                    file.seek(member.offset)
                    text = file.read(member.size).decode("utf-8", "replace")
                keys.append(key)
                texts.append(text)
        group = np.array([caption_group(text) for text in texts], np.int64)
        captions = pa.array([[text] for text in texts], pa.list_(pa.string()))
        return ShardCaptions(pa.array(keys, pa.string()), captions, group)


def caption_group(text: str) -> int:
    """A stable 63-bit hash of a caption without regard to case and spacing: equal captions, equal group."""
    digest = hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _whole(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):  # an empty column stays chunked
        return pa.concat_arrays(combined.chunks) if combined.num_chunks else pa.array([], column.type)
    return combined
