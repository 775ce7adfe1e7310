"""What one part of a data set holds, as a Parquet file of the work folder."""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from filip.data.cards import SourceCard
from filip.data.ingesting import LAYOUTS
from filip.files import replacing

BATCH = 10_000
FOUND_SCHEMA = pa.schema(
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


def find_part(layout: str, part: Path, number: int, card: SourceCard, out: Path) -> int:
    """List the images of one part into ``out``; returns 1, for the progress. Runs in a worker process."""
    with (
        tempfile.TemporaryDirectory(dir=out.parent) as scratch,
        replacing(out) as path,
        pq.ParquetWriter(path, FOUND_SCHEMA, compression="zstd") as writer,
    ):
        found = LAYOUTS[layout].find(part, card, Path(scratch))
        n = 0
        while batch := list(islice(found, BATCH)):
            rows = [
                {**vars(image), "captions": [_valid(c) for c in image.captions], "part": number, "n": n + i}
                for i, image in enumerate(batch)
            ]
            for row in rows:
                row["url"] = _valid(row["url"])
            writer.write_table(pa.Table.from_pylist(rows, FOUND_SCHEMA))
            n += len(batch)
    return 1


def _valid(text: str) -> str:
    """Without what no Parquet file can hold: lone surrogates, of JSON or of file names that are not UTF-8."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode()
