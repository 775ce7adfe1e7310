"""Store where each file of a shard is: ``NNNNN.index`` next to ``NNNNN.tar``, so that no tar is scanned twice.

The download writes it with the shard; a tar from elsewhere is scanned on first use (60,000 files a second, and
every byte of the tar passes through memory) and is indexed then. The index holds the size and the time of
change of its tar: when they differ, the tar is scanned again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from filip.common.files import replacing
from filip.common.tar_index import IMAGE_SUFFIXES, Member, scan_tar, split_key
from filip.data.lists.parquet_rows import whole_file
from filip.data.remote_tars import address, state_of

log = logging.getLogger(__name__)
VERSION = 1
SCHEMA = pa.schema([("key", pa.string()), ("suffix", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])


@dataclass(frozen=True)
class ShardIndex:
    """Files of a tar, in its order."""

    keys: list[str]
    suffixes: list[str]
    offsets: list[int]  # first byte of each, from the start of the tar
    sizes: list[int]  # bytes
    defect: str | None = None  # as from :func:`filip.common.tar_index.scan_tar`

    def images(self) -> dict[str, int]:
        """Return, by key, the number of its image among the files; the last of several images with one key counts."""
        return {
            key: n
            for n, (key, suffix) in enumerate(zip(self.keys, self.suffixes, strict=True))
            if suffix.lower() in IMAGE_SUFFIXES
        }

    def texts(self) -> dict[str, int]:
        """Return, by key, the number of its .txt among the files."""
        return {key: n for n, (key, suffix) in enumerate(zip(self.keys, self.suffixes, strict=True)) if suffix == "txt"}


def shard_index(tar: Path, opened: Callable[[Path], int] | None = None) -> ShardIndex:
    """Return the index of a shard: read if it is up to date, else made, and kept if the folder can be written to.

    opened: returns a descriptor of the tar if it is in a bucket.
    """
    state = _state(tar)
    index = _read(tar, state)
    if index is None:
        index = index_of(*scan_tar(tar if opened is None else opened(tar)))
        if state is not None:
            try:
                write_index(tar, index, state)
            except OSError as error:
                log.debug("no index next to %s: %s", tar, error)
    return index


def index_of(members: Iterable[Member], defect: str | None = None) -> ShardIndex:
    """Return the index of a tar's members."""
    rows: list[Any] = [(*split_key(name), offset, size) for name, offset, size in members]
    keys, suffixes, offsets, sizes = ([row[column] for row in rows] for column in range(4))
    return ShardIndex(keys, suffixes, offsets, sizes, defect)


def write_index(tar: Path, index: ShardIndex, state: dict[str, int] | None = None) -> None:
    """Write ``NNNNN.index`` next to a complete tar; ``state``: size and time of the tar when it was indexed."""
    about = {"version": VERSION, "defect": index.defect, "tar": state or _state(tar)}
    schema = SCHEMA.with_metadata({"filip": json.dumps(about)})
    columns = [index.keys, index.suffixes, index.offsets, index.sizes]
    with replacing(index_path(tar), shared=True) as part:
        pq.write_table(pa.table(columns, schema=schema), part, compression="zstd")


def index_path(tar: Path) -> Path:
    return tar.with_suffix(".index")


def _state(tar: Path) -> dict[str, int] | None:
    """Return size and time of a tar; of one in a bucket the size, since its index may be older than its copy there."""
    if (state := state_of(tar)) is None:
        return None
    return {"bytes": state[0]} if address(tar) else {"bytes": state[0], "mtime_ns": state[1]}


def _read(tar: Path, state: dict[str, int] | None) -> ShardIndex | None:
    """Return the stored index if it matches this tar."""
    try:
        table = whole_file(index_path(tar))
        about = json.loads((table.schema.metadata or {}).get(b"filip", b"{}"))
    except (OSError, pa.ArrowException, ValueError):
        return None  # missing or broken
    written_for = about.get("tar") or {}
    if about.get("version") != VERSION or state is None or {name: written_for.get(name) for name in state} != state:
        return None
    keys, suffixes, offsets, sizes = (table[name].to_pylist() for name in SCHEMA.names)
    return ShardIndex(keys, suffixes, offsets, sizes, about["defect"])


def shard_images(tar: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (key, encoded image) of every sample of a shard, in its order."""
    index = shard_index(tar)
    with open(tar, "rb") as file:
        for key, n in index.images().items():
            yield key, os.pread(file.fileno(), index.sizes[n], index.offsets[n])
