"""List the rows of a set in Parquet files, one for each part, and gather the captions of an image from several rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filip.files import replacing
from filip.sets.layout import Reading
from filip.sets.layouts import rows_of

BATCH = 10_000
ROW_SCHEMA = pa.schema(
    [
        ("url", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("file", pa.string()),
        ("position", pa.int64()),
        ("size", pa.int64()),
        ("group", pa.string()),
        ("key", pa.string()),
        ("problem", pa.string()),
        ("part", pa.int64()),
        ("n", pa.int64()),
    ]
)


def find_part(layout: str, part: Path | None, number: int, reading: Reading, out: Path) -> int:
    """List the rows of one part into ``out``; return 1, for the progress. Runs in a worker process."""
    with replacing(out) as path, pq.ParquetWriter(path, ROW_SCHEMA, compression="zstd") as writer:
        found = rows_of(layout, part, reading)
        n = 0
        while batch := list(islice(found, BATCH)):
            rows = [
                {**vars(image), "captions": [_valid(c) for c in image.captions], "part": number, "n": n + i}
                for i, image in enumerate(batch)
            ]
            for row in rows:
                row |= {name: _valid(row[name]) for name in ("url", "file", "problem") if row[name] is not None}
            writer.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA))
            n += len(batch)
    return 1


def _valid(text: str) -> str:
    """Return a text without lone surrogates (from JSON or names that are not UTF-8), which no Parquet file can hold."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode()


def group_captions(sorted_rows: pa.RecordBatchReader, by: Sequence[str], once: bool = False) -> Iterator[pa.Table]:
    """Yield one row for each run of rows with equal columns ``by``, in tables of any size; the last may be empty.

    The column ``captions`` (strings, or lists of them) becomes the list of all values in the run, in their order and,
    if ``once``, without repetitions; the other columns are those of the first row.
    """
    held = sorted_rows.schema.empty_table()
    for batch in sorted_rows:
        rows = pa.concat_tables([held, pa.Table.from_batches([batch])]).combine_chunks()
        starts = _starts(rows, by)
        if len(starts) > 1:
            yield _group(rows.slice(0, starts[-1]), starts[:-1], once)
        held = rows.slice(starts[-1]) if len(starts) else rows  # goes on in the next batch
    yield _group(held, _starts(held, by), once)


def _starts(rows: pa.Table, by: Sequence[str]) -> np.ndarray:
    """Return int64 [runs]: the first row of each run."""
    if not len(rows):
        return np.zeros(0, np.int64)
    columns = [rows[name].combine_chunks() for name in by]
    differs = [pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False) for column in columns]
    return np.concatenate([[0], 1 + np.flatnonzero(np.any(differs, axis=0))])


def _group(rows: pa.Table, starts: np.ndarray, once: bool) -> pa.Table:
    column = rows["captions"].combine_chunks()
    run = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(rows))))  # the run of each row ...
    if pa.types.is_list(column.type):
        run = run[pc.list_parent_indices(column).to_numpy()]  # ... and of each of its captions
        column = pc.list_flatten(column)
    if once:
        codes = column.dictionary_encode().indices.to_numpy().astype(np.int64)
        first = np.sort(np.unique(run * (len(column) + 1) + codes, return_index=True)[1])
        run, column = run[first], column.take(pa.array(first))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(run, minlength=len(starts)))])
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), column)
    place = rows.schema.get_field_index("captions")
    return rows.take(pa.array(starts)).set_column(place, "captions", lists)
