"""Read a list of URLs as one SQL relation, in every format and encoding that :mod:`filip.sets.tables` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from filip.common.errors import UserError
from filip.common.files import nothing_at, replacing
from filip.data.cards import SourceCard
from filip.data.lists import duckdb_io
from filip.sets.tables import KINDS, PACKED, Broken, read_table

SUFFIXES = {**KINDS, ".txt": "tsv", ".json": "json"}
ROWS = 20_000  # copied at once
BROKEN = b"broken_lines"


def list_files(card: SourceCard) -> Sequence[str]:
    """Return the files that the card's ``list`` names. Raises UserError with how to obtain them if there are none."""
    if card.images and not card.list:
        raise UserError(f"source '{card.name}' has images, not a list: `filip data ingest` reads them, not prepare")
    if not card.list:
        raise UserError(
            f"source '{card.name}' ({card.path or 'given directly'}) has no list of URLs: give list=PATH. "
            f"How to obtain it: {' '.join(card.obtain.split()) or 'see its homepage ' + card.homepage}"
        )
    folder = Path(card.list)
    paths = [card.list] if folder.exists() else sorted(glob(card.list)) or [card.list]
    if folder.is_dir():
        paths = sorted(str(p) for p in folder.glob("*.parquet"))
    missing = [path for path in paths if not Path(path).is_file()]
    if missing or not paths:
        place = missing[0] if missing else card.list
        obtain = f" How to obtain it: {' '.join(card.obtain.split())}" if card.obtain else ""
        why = f"the folder {place} has no .parquet in it" if folder.is_dir() else nothing_at(place)
        raise UserError(f"no list of URLs: {why}{'' if why.endswith('?') else '.'}{obtain}")
    return paths


def _format(card: SourceCard, path: str) -> str:
    if card.format != "auto":
        return card.format
    suffixes = [s.lower() for s in Path(path).suffixes if s.lower() not in PACKED]
    if not suffixes or suffixes[-1] not in SUFFIXES:
        raise UserError(
            f"cannot tell the format of {path} by its name: end it in one of {', '.join(SUFFIXES)} "
            f"(optionally {', '.join(PACKED)}) or set `format` in a source card"
        )
    return SUFFIXES[suffixes[-1]]


def relation(card: SourceCard, paths: Sequence[str], scratch: Path) -> tuple[str, int]:
    """Return SQL that reads the list, and how many of its lines cannot be read.

    Texts are read by :mod:`filip.sets.tables`, as for `filip data ingest`, into Parquet in ``scratch``.
    """
    kinds = {_format(card, path) for path in paths}
    if len(kinds) > 1:
        raise UserError(f"one list, one format: {card.list} has {', '.join(sorted(kinds))}")
    kind = kinds.pop()
    if kind == "parquet":
        return duckdb_io.parquet(paths), 0
    copies = [scratch / f"{number:05d}.parquet" for number in range(len(paths))]
    for path, copy in zip(paths, copies, strict=True):
        if not copy.exists():  # by another part, or a run that was killed
            _copy(card, Path(path), kind, copy)
    broken = sum(int(pq.read_metadata(copy).metadata[BROKEN]) for copy in copies)
    by_name = ["union_by_name = true"] if kind in ("json", "jsonl") else []  # records of files may have other keys
    return duckdb_io.parquet(copies, *by_name), broken


def _copy(card: SourceCard, path: Path, kind: str, target: Path) -> None:
    """Write the rows of a list as Parquet, all values as texts; its metadata count the lines that cannot be read."""
    table = read_table(path, card.header, card.columns, kind, card.encoding)
    urls = [bool(re.match("https?://", name)) for name in table.names]
    if card.header and not card.columns and kind in ("csv", "tsv") and sorted(urls) == [False, True]:
        # CC3M's and CC12M's lists have no header
        table = read_table(path, False, ["url" if is_url else "caption" for is_url in urls], kind, card.encoding)
    schema = pa.schema([(name or f"column{number}", pa.string()) for number, name in enumerate(table.names)])
    broken = 0
    with replacing(target) as part, pq.ParquetWriter(part, schema) as writer:
        while rows := list(islice(table.rows, ROWS)):
            records = [row[1] for row in rows if not isinstance(row, Broken)]
            broken += len(rows) - len(records)
            columns = [[_text(record.get(name)) for record in records] for name in table.names]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
        writer.add_key_value_metadata({BROKEN: str(broken)})


def _text(value: Any) -> str | None:
    """Return a value as text, without lone surrogates, which Parquet does not hold; None for an empty one."""
    if value is None or value == "":
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("\0", " ").encode("utf-8", "replace").decode()
