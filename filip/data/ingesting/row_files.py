"""List the rows of one part of a set in a Parquet file of the work folder."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pyarrow as pa
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
