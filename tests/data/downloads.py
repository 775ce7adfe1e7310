"""Lists to download, what became of them, a disk that is full, and what kills its worker."""

import hashlib
import io
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from filip.data.fetching.image_rules import CheckedResizer
from tests.data import hostile


def write_list(path: Path, urls: Sequence[str | None], per_shard: int | None = None, **columns: Sequence[Any]) -> Path:
    """Write a list of URLs; per_shard: with a row group for each shard, as a pass has it."""
    captions = [f"caption {i}" for i in range(len(urls))]
    pq.write_table(pa.table({"url": urls, "caption": captions, **columns}), path, per_shard)
    return path


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every tar and Parquet file of a folder; an index holds its tar's time of change."""
    files = [*folder.glob("*.tar"), *folder.glob("*.parquet")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextmanager
def disk_with_room_for(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes, which to a program is the same as a full disk.

    Python would cut off the bytecode of modules that are imported meanwhile, and not notice.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    compiles, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = compiles


class DeadlyResizer(CheckedResizer):
    def __call__(self, img_stream: io.BytesIO) -> tuple[Any, ...]:
        if img_stream.getvalue() in (hostile.GOOD["jpeg"](), hostile.GOOD["webp"]()):
            os._exit(9)
        return super().__call__(img_stream)
