"""Read a list of URLs as one SQL relation: every format, compressed or not, and lines that cannot be read."""

from __future__ import annotations

import bz2
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from filip.data.cards import SourceCard
from filip.data.lists import duckdb_io
from filip.data.remote_tars import fetched
from filip.errors import UserError
from filip.files import nothing_at

SUFFIXES = {
    ".parquet": "parquet",
    ".tsv": "tsv",
    ".txt": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
COMPRESSIONS = (".gz", ".zst", ".bz2")


def lists_here(card: SourceCard, folder: Path) -> SourceCard:
    """Return the card with copies of its lists in ``folder`` in the place of those in a bucket (``s3://…``)."""
    named = {key: getattr(card, key) for key in ("list", "subset", "uids")}
    there = {key: url for key, url in named.items() if url and "://" in url}
    here: dict[str, Any] = {key: fetched(url, folder / key) for key, url in there.items()}
    return replace(card, **here)


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
    suffixes = [s.lower() for s in Path(path).suffixes if s.lower() not in COMPRESSIONS]
    if not suffixes or suffixes[-1] not in SUFFIXES:
        raise UserError(
            f"cannot tell the format of {path} by its name: end it in one of {', '.join(SUFFIXES)} "
            f"(optionally {', '.join(COMPRESSIONS)}) or set `format` in a source card"
        )
    return SUFFIXES[suffixes[-1]]


def relation(
    card: SourceCard, paths: Sequence[str], scratch: Path, count_rejects: bool = True, strict: bool = True
) -> str:
    """Return SQL that reads the list. ``ignore_errors`` with ``store_rejects`` lets bad lines be counted, not fatal."""
    kinds = {_format(card, path) for path in paths}
    if len(kinds) > 1:
        raise UserError(f"one list, one format: {card.list} has {', '.join(sorted(kinds))}")
    kind = kinds.pop()
    if kind == "parquet":
        if strict:
            return duckdb_io.parquet(paths)
        copies = [scratch / f"{number}.parquet" for number in range(len(paths))]
        return duckdb_io.parquet([_valid_text(*pair) for pair in zip(paths, copies, strict=True)])
    plain = [_plain(path, scratch / f"{number:05d}") for number, path in enumerate(paths)]
    files = duckdb_io.file_list(plain)
    if kind == "jsonl":
        return _json_relation(files, card)
    tsv = kind == "tsv"
    options = [
        f"delim = {duckdb_io.sql_literal(chr(9) if tsv else ',')}",
        # Captions hold stray quotes; tab-separated lists (CC3M, CC12M) never quote fields.
        "quote = '', escape = ''" if tsv else "quote = '\"', escape = '\"'",
        f"header = {'true' if card.header and not card.columns else 'false'}",
        f"strict_mode = {str(strict).lower()}, {duckdb_io.NO_FOLDER_IS_A_COLUMN}",
        f"all_varchar = true, ignore_errors = true, store_rejects = {count_rejects}, max_line_size = 10000000",
    ]
    if card.columns:
        names = ", ".join(duckdb_io.sql_literal(column) for column in card.columns)
        options.append(f"names = [{names}], auto_detect = true")
    return f"read_csv({files}, {', '.join(options)})"


def _json_relation(files: str, card: SourceCard) -> str:
    """Return SQL of JSON lines with the keys of all of them; lines that are not a JSON object have no url.

    DuckDB's read_json guesses keys and types from the first lines: later keys vanish, and after many captions like
    "2014-05-12" all others are not dates and become NULL.
    """
    lines = f"read_ndjson_objects({files}, ignore_errors = true, {duckdb_io.NO_FOLDER_IS_A_COLUMN})"
    con = duckdb.connect()
    grouped = f"SELECT json_group_structure(json) FROM {lines} WHERE json_type(json) = 'OBJECT'"
    try:
        structure = json.loads(con.sql(grouped).fetchall()[0][0] or "{}")
    except RecursionError as error:
        raise UserError(f"{card.list} has a line of JSON that is nested too deeply to be a row") from error
    con.close()
    texts = {card.url_column, card.caption_column, *card.caption_columns}
    columns = []
    for key, kind in structure.items():
        value = f"json_extract(json, {duckdb_io.sql_literal(_json_pointer(key))})"
        if key in texts or kind == "VARCHAR":  # a title may be 1984 in one line
            value = f"CASE json_type({value}) WHEN 'NULL' THEN NULL ELSE {value} ->> '$' END"
        elif isinstance(kind, str) and kind != "JSON":
            value = f"TRY_CAST({value} AS {'BIGINT' if 'INT' in kind else kind})"
        elif kind == ["VARCHAR"]:
            value = f"TRY_CAST({value} AS VARCHAR[])"
        columns.append(f"{value} AS {duckdb_io.sql_identifier(key)}")
    return f"(SELECT {', '.join(columns) or 'NULL AS nothing'} FROM {lines})"


def _json_pointer(key: str) -> str:
    return "/" + key.replace("~", "~0").replace("/", "~1")


def _valid_text(path: str, target: Path) -> Path:
    """Return a copy of a Parquet file with invalid UTF-8 replaced, as DuckDB would refuse the whole file."""
    with pq.ParquetFile(path) as parquet:
        schema = parquet.schema_arrow
        with pq.ParquetWriter(target, schema) as writer:
            for batch in parquet.iter_batches():
                columns = [_decoded(column) if pa.types.is_string(column.type) else column for column in batch.columns]
                writer.write_batch(pa.record_batch(columns, schema=schema))
    return target


def _decoded(column: pa.Array) -> pa.Array:
    raw = column.cast(pa.binary()).to_pylist()
    return pa.array([None if text is None else text.decode("utf-8", "replace") for text in raw], pa.string())


def _plain(path: str, folder: Path) -> Path:
    """Return files that DuckDB can read: gzip and zstd unchanged, bzip2 (YFCC100M) unpacked into a separate folder."""
    if not path.endswith(".bz2"):
        return Path(path)
    folder.mkdir(exist_ok=True)  # parts in different folders may have the same name
    target = folder / Path(path).stem
    with bz2.open(path) as packed, open(target, "wb") as plain:
        shutil.copyfileobj(packed, plain, 1 << 22)
    return target


def rejected_lines(con: duckdb.DuckDBPyConnection) -> int:
    try:
        return int(con.sql("SELECT count(DISTINCT (scan_id, file_id, line)) FROM reject_errors").fetchall()[0][0])
    except duckdb.Error:  # the table exists only after a CSV was read
        return 0
