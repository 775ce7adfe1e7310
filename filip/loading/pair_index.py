"""Index the pairs in a source's shards: the indices of the tars, joined by key with the caption side-cars.

Tars are never unpacked: a sample is one ``pread``. Whatever a shard lacks is counted here, before training starts.
The join is made once for all ranks and loader workers, which map its arrays into memory and so share one copy a
machine: 16 bytes a pair, 5.4 GB at 340 million pairs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filip.common.errors import DamagedFileError, UserError, counted
from filip.common.files import digest, locked
from filip.common.progress import track
from filip.data.lists.parquet_rows import whole_file
from filip.data.remote_tars import address, state_of
from filip.data.shard_index import shard_index
from filip.data.sidecar import group_id
from filip.loading.config import DataConfig, Source
from filip.loading.tar_cache import THREADS, TarCache

VERSION = 1  # version of the joined index
FOLDER = "_index"  # next to the side-cars
_ARRAYS = {"offset": np.int64, "size": np.int32, "row": np.int32}

Identity = tuple[str, str]  # of a source's place and of the state of its files
_Part = tuple[np.ndarray, np.ndarray, np.ndarray, Counter[str]]


@dataclass
class SourceIndex:
    """Index of a source's usable samples; arrays have one entry per sample, in tar order."""

    source: Source
    tars: list[Path]
    offset: np.ndarray  # int64, bytes
    size: np.ndarray  # int32, bytes
    row: np.ndarray  # int32: row of the side-car, or number of the .txt among the tar's files
    counts: np.ndarray  # int64 [shards]: samples per shard
    state: str  # of all its files, see :func:`identity_of`
    problems: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.starts = np.cumsum(self.counts) - self.counts  # int64 [shards]: first sample of each shard

    def __len__(self) -> int:
        return len(self.offset)

    def map_path(self, folder: Path, shard: int) -> Path:
        """Return where the feature maps of a shard's images are, see :mod:`filip.loading.stem_maps`."""
        tar, start = self.tars[shard], int(self.starts[shard])
        used = self.offset[start : start + int(self.counts[shard])]
        state = state_of(tar) or ()
        return folder / f"{tar.stem}-{digest([str(tar.resolve()), *state, used.tolist()])[:16]}.npy"


def index_source(
    source: Source, cache: TarCache | None = None, processes: int = 1, identity: Identity | None = None
) -> SourceIndex:
    """Index every usable pair of a source, in memory-mapped arrays.

    One process makes them while the others wait; they are kept until a tar or a side-car changes, in ``_index`` next
    to the side-cars (or the shards, if there are none), or where that cannot be written, in the machine's folder for
    temporary files. cache: for tars that are in a bucket, each of which
    is fetched once to be indexed, unless its index is here. identity: what :func:`identity_of` has returned to
    another rank, so that this one asks the file system about no file. Raises UserError if there is nothing to train on;
    lesser defects are counted in ``problems``. Raises DamagedFileError with the name of a shard that is damaged.
    """
    cache = cache or TarCache.of(DataConfig())
    source = cache.local_source(source)
    tars = _find_tars(source)
    joined = _writable_folder(source)
    where, state = identity or identity_of(source, tars)
    entry = joined / f"{where}-{state}"
    if not entry.is_dir():
        with locked(joined / "lock"):
            if not entry.is_dir():
                _build(source, tars, entry, processes, cache)
                for path in joined.glob(f"{where}-*"):
                    if path != entry:
                        shutil.rmtree(path, ignore_errors=True)  # the index of files that have changed since
    arrays = {name: np.memmap(entry / name, dtype, "r") for name, dtype in _ARRAYS.items()}
    counts = np.load(entry / "counts.npy")
    problems = Counter(json.loads((entry / "problems.json").read_text()))
    return SourceIndex(source, tars, **arrays, counts=counts, state=state, problems=problems)


def _writable_folder(source: Source) -> Path:
    """Return the folder of joined indices."""
    joined = Path(source.captions if source.captions is not None else source.shards) / FOLDER
    with suppress(OSError):  # a data set that is read-only
        joined.mkdir(exist_ok=True)
    if os.access(joined, os.W_OK):
        return joined
    cache = Path(tempfile.gettempdir()) / f"filip-index-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.stat().st_uid != os.getuid():
        raise UserError(f"{cache} belongs to another user: give a TMPDIR that is yours")
    return cache


def identity_of(source: Source, tars: list[Path] | None = None) -> Identity:
    """Return two names: one for the source's place, one for the state of all its files (by size and time of change)."""
    tars = tars or _find_tars(source)
    files = [*tars, *(sidecar_path(source, tar) for tar in tars if source.captions is not None)]
    with ThreadPoolExecutor(THREADS) as pool:
        states = [(file.name, *(state or ())) for file, state in zip(files, pool.map(state_of, files), strict=True)]
    place = [str(Path(folder).resolve()) for folder in (source.shards, source.captions) if folder is not None]
    where, state = (hashlib.sha256(json.dumps([VERSION, value]).encode()).hexdigest()[:16] for value in (place, states))
    return where, state


def _build(source: Source, tars: list[Path], entry: Path, processes: int, cache: TarCache) -> None:
    """Write the arrays of a source into the folder ``entry``, shard by shard."""
    work = entry.with_name(f".{entry.name}.part")
    shutil.rmtree(work, ignore_errors=True)  # left by a process that was killed
    work.mkdir()
    counts: list[int] = []
    problems: Counter[str] = Counter()
    with ExitStack() as stack:
        files = [stack.enter_context(open(work / name, "wb")) for name in _ARRAYS]
        for *columns, defects in track(_parts(source, tars, processes, cache), "indexing", "shards", len(tars)):
            for file, column in zip(files, columns, strict=True):
                file.write(column.tobytes())
            counts.append(len(columns[0]))
            problems += defects
    if not sum(counts):
        raise UserError(
            f"no usable pair in the {len(tars)} shards of {source.shards}: {counted(problems)}; do the "
            f"side-cars in {source.captions} belong to these shards?"
        )
    np.save(work / "counts.npy", np.array(counts, np.int64))
    (work / "problems.json").write_text(json.dumps(problems))
    os.replace(work, entry)


def _parts(source: Source, tars: list[Path], processes: int, cache: TarCache) -> Iterator[_Part]:
    """Yield the result of :func:`_index_shard` for each tar, in order."""
    if processes <= 1 or len(tars) <= processes:
        yield from (_index_shard(source, cache, tar) for tar in tars)
        return
    context = multiprocessing.get_context("fork")  # a spawned process would import torch for seconds
    try:
        # not multiprocessing.Pool, which waits forever for a worker that was killed
        with ProcessPoolExecutor(processes, context) as pool:
            yield from pool.map(functools.partial(_index_shard, source, cache), tars, chunksize=4)
    except BrokenProcessPool as error:
        raise UserError(
            f"a process that indexed the shards of {source.shards} was killed (out of memory?): start again, "
            "with fewer workers if memory is short"
        ) from error


def sidecar_path(source: Source, tar: Path) -> Path:
    """Return the side-car of a shard: the same number, in the captions folder."""
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


def _index_shard(source: Source, cache: TarCache, tar: Path) -> _Part:
    """Return offset, size and row of each usable sample of a shard, and the faults of the others.

    Raises DamagedFileError if the tar is damaged, or has fewer images than its statistics count.
    """
    problems: Counter[str] = Counter()
    index = shard_index(tar, cache.open)
    images = index.images()
    stats = tar.with_name(f"{tar.stem}_stats.json")
    stored = json.loads(stats.read_text()).get("successes", 0) if stats.exists() else 0
    if index.defect is not None or len(images) < stored:
        fault = index.defect or f"it has {len(images):,} images, and {stats.name} counts {stored:,}"
        raise DamagedFileError(
            f"the shard {address(tar) or tar} is damaged: {fault}. Restore it; or delete it with its stats file, and "
            "the same download (or ingest) makes it again"
        )
    keys, numbers = list(images), list(images.values())
    if source.captions is None:
        texts = index.texts()
        rows = np.array([texts.get(key, -1) for key in keys], np.int32)
        problems["missing_caption"] += int((rows < 0).sum())
        problems["missing_image"] += len(texts.keys() - images.keys())
    else:
        rows = _sidecar_rows(sidecar_path(source, tar), keys, problems)
    used = rows >= 0
    offset = np.array([index.offsets[n] for n in numbers], np.int64)
    size = np.array([index.sizes[n] for n in numbers], np.int32)
    return offset[used], size[used], rows[used], +problems


def _sidecar_rows(path: Path, keys: list[str], problems: Counter[str]) -> np.ndarray:
    """Return the row of each key in the side-car, -1 where it has none (or no caption)."""
    nowhere = np.full(len(keys), -1, np.int32)
    if not path.exists():
        problems["shards_without_sidecar"] += 1
        problems["missing_sidecar"] += len(keys)
        return nowhere
    captions = ShardCaptions.from_sidecar(path)
    rows = pc.index_in(pa.array(keys, captions.keys.type), value_set=captions.keys)
    row_numbers = rows.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    problems["not_in_sidecar"] += int((row_numbers < 0).sum())
    problems["missing_image"] += len(captions.keys) - int((row_numbers >= 0).sum())
    empty = (row_numbers >= 0) & (captions.counts[row_numbers] == 0) if len(captions.counts) else row_numbers >= 0
    problems["missing_caption"] += int(empty.sum())
    return np.where(empty, nowhere, row_numbers)


class ShardCaptions:
    """Candidate captions, group and key of each row of a shard's side-car (or of each .txt in a tar)."""

    def __init__(self, keys: pa.Array, captions: pa.Array, group: np.ndarray, originals: np.ndarray) -> None:
        self.keys = keys  # string
        self.captions = captions  # list<string>
        self.group = group  # int64
        self.counts = pc.list_value_length(captions).fill_null(0).to_numpy(zero_copy_only=False)
        self.originals = originals  # int: how many of a row's captions, from the first, are not translations

    def key(self, row: int) -> str:
        return self.keys[row].as_py()

    def text(self, row: int, draw: float, translated: bool) -> str:
        """Return the caption at the share ``draw`` (0 <= draw < 1) of a row's captions.

        translated: with the translations of its originals.
        """
        candidates = int(self.counts[row] if translated else self.originals[row])
        return self.captions[row][int(draw * candidates)].as_py() or ""

    @staticmethod
    def from_sidecar(path: Path) -> ShardCaptions:
        """Read a side-car. Raises UserError if it is not one, or unreadable."""
        try:
            names = ["key", "captions", "group", "origins"]
            table = whole_file(path, names)
            keys, captions, group, origins = (table.column(name).combine_chunks() for name in names)
            ids = group.to_numpy(zero_copy_only=False).astype(np.int64)
            is_original = pc.equal(pc.list_flatten(origins), "original").fill_null(False).to_numpy(zero_copy_only=False)
            rows = pc.list_parent_indices(origins).to_numpy()[is_original]
            return ShardCaptions(keys, captions, ids, np.bincount(rows, minlength=len(origins)).clip(min=1))
        except (OSError, pa.ArrowException, KeyError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the file may be in order
                raise UserError(f"cannot open the side-car {path}: {os.strerror(error.errno)}") from error
            raise UserError(
                f"cannot read the side-car {path} (columns key, captions, origins, group): {error}; "
                "delete it and run the translation stage again"
            ) from error

    @staticmethod
    def from_tar(tar: Path, cache: TarCache) -> ShardCaptions:
        """Make one row per file of the tar; only the rows of .txt files mean anything."""
        index = shard_index(tar, cache.open)
        texts, group = [""] * len(index.keys), np.zeros(len(index.keys), np.int64)
        with open(cache.open(tar), "rb") as file:
            for n in index.texts().values():
                file.seek(index.offsets[n])
                texts[n] = file.read(index.sizes[n]).decode("utf-8", "replace")
                group[n] = group_id(texts[n])
        captions = pa.array([[text] for text in texts], pa.list_(pa.string()))
        return ShardCaptions(pa.array(index.keys, pa.string()), captions, group, np.ones(len(texts), np.int64))
