"""Read Parquet files in tables of a given size, whatever their row groups are, and hash their content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from filip.common.errors import UserError

_HASHED = 50_000  # rows at once; the hash depends on it


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the error of a file that is not Parquet, or is cut off, into a UserError that names it."""
    try:
        yield
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not Parquet, or not whole: run the stage that wrote it again ({error})") from error


def whole_file(path: Path | BinaryIO, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a small file at once. ``pyarrow.parquet.read_table`` would import pandas for it, which takes a second."""
    with pq.ParquetFile(path) as parquet:
        return parquet.read(columns)


def rebatched(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Yield the rows of batches of any size in tables of ``rows``; the last may be shorter."""
    pending: list[pa.RecordBatch] = []
    held = 0
    for batch in batches:
        pending.append(batch)
        held += batch.num_rows
        while held >= rows:
            table = pa.Table.from_batches(pending)
            yield table.slice(0, rows)
            pending = table.slice(rows).to_batches()
            held -= rows
    if held:
        yield pa.Table.from_batches(pending)


def runs(sorted_batches: Iterable[pa.RecordBatch], *columns: str) -> Iterator[list[dict[str, Any]]]:
    """Yield each run of rows that are equal in these columns."""
    rows = (row for batch in sorted_batches for row in batch.to_pylist())
    return (list(run) for _, run in groupby(rows, itemgetter(*columns)))


def row_group(path: Path, group: int) -> pa.Table:
    """Return the rows of one row group.

    A file of tens of thousands lists them in a hundred megabytes at its end: each process reads that once.
    """
    return _opened(path, path.stat().st_mtime_ns, path.stat().st_ino).read_row_group(group, use_threads=False)


@lru_cache(maxsize=1)
def _opened(path: Path, *state: int) -> pq.ParquetFile:
    return pq.ParquetFile(path)


def content_hash(path: Path, columns: Sequence[str]) -> str:
    """Return the SHA-256 of the rows of these columns: equal for equal rows, however the file was written."""
    digest = hashlib.sha256()
    with pq.ParquetFile(path) as parquet:
        for table in rebatched(parquet.iter_batches(_HASHED, columns=list(columns)), _HASHED):
            stream = pa.BufferOutputStream()
            with pa.ipc.new_stream(stream, table.schema.remove_metadata()) as writer:
                writer.write_table(table.replace_schema_metadata(None).combine_chunks())
            digest.update(stream.getvalue())
    return digest.hexdigest()
