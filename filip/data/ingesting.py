"""List the rows of a set on disk, and store its shards as a download does, or as links to tars that fit as they are."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image as Picture

from filip.common.errors import UserError
from filip.common.files import digest, file_state, replacing, write_json
from filip.data.cards import SourceCard
from filip.data.fetching.image_rules import inspect
from filip.data.fetching.outcomes import FORGOTTEN, MAX_BYTES, Forgotten, hash_of_url, place_of
from filip.data.fetching.shard_maker import SUFFIXES, ShardMaker, Stored, is_complete, schema_of, shard_name, statistics
from filip.data.lists.parquet_rows import row_group
from filip.data.shard_index import shard_index
from filip.sets.layout import Reading
from filip.sets.layout import Row as ListedRow
from filip.sets.layouts import LAYOUTS, rows_of
from filip.sets.text import NotAFileError

LOCATORS = ("_file", "_position", "_size", "_key", "_part")  # columns of the list that no shard shows
# Errors of one file, not of its disk: the image is counted, and the run continues.
OF_ONE_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
Row = dict[str, Any]


def sweep(folder: Path, shards: range) -> None:
    """Remove half-finished shards of killed workers, and surplus shards of an earlier run that had more."""
    for path in (folder / "_work").iterdir():
        if path.is_dir() and path.name.partition(".")[0].isdigit():
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.iterdir():
        number = re.match("[0-9]+", path.name)
        if number and path.name[number.end() :] in SUFFIXES and int(number[0]) not in shards:
            path.unlink()


def is_current(folder: Path, shard: int, kept: Path, card: SourceCard) -> bool:
    """Return whether a complete shard is there that was made from exactly these rows with these settings."""
    try:
        stats = json.loads((folder / f"{shard:05d}_stats.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    complete = is_complete(folder, shard) and (folder / f"{shard:05d}.index").exists()
    # rows, settings, and the files themselves: a missing one may be in its place by now
    return complete and bool(stats.get("made_from") == _identity(_rows(kept, shard), card))


def _rows(kept_list: Path, shard: int) -> list[Row]:
    rows: list[Row] = row_group(kept_list, shard).to_pylist()
    return rows


def _identity(rows: list[Row], card: SourceCard) -> str:
    load = card.download
    pictures = (load.image_size, load.resize_mode, load.only_if_bigger, load.encode_format, load.quality)
    files = {row["_file"]: file_state(row["_file"]) for row in rows}
    whole = ["full_decoding"] if load.full_decoding else []
    return digest([rows, files, asdict(card.image_rules), pictures, *whole])


def store_shard(kept: Path, shard: int, folder: Path, card: SourceCard, layout: str, tars: str | None = None) -> int:
    """Make a shard from a row group of ``kept``; return how many images it was asked for. Runs in a worker.

    tars: folder of a bucket to which the tar is sent.
    """
    rows = _rows(kept, shard)
    # before the files are read: one that changes meanwhile is read again next time
    made_from = _identity(rows, card)
    maker = ShardMaker(card=card, final_folder=folder, tars=tars)
    schema = _schema(kept, shard)
    with maker.staged(shard) as (staging, progress):
        linked = not Forgotten.load(folder).path.exists()  # else the tar may hold forgotten images
        stats = _link(rows, schema, staging / shard_name(shard), card, layout) if linked else None
        if stats is None:
            images = ((number, *_read(row, layout)) for number, row in enumerate(rows))
            stats = maker.fill(shard, staging, progress, [_shown(row) for row in rows], schema, images)
        write_json(staging / f"{shard_name(shard)}_stats.json", stats | {"made_from": made_from})
    return len(rows)


def _schema(kept_list: Path, shard: int) -> pa.Schema:
    return schema_of(pa.schema([field for field in row_group(kept_list, shard).schema if field.name not in LOCATORS]))


def _shown(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in LOCATORS}


def _read(row: Row, layout: str) -> tuple[bytes | None, str]:
    """Return the bytes of an image, or None and the reason. Raises UserError when the disk fails."""
    if row["url"] == FORGOTTEN:
        return None, f"{FORGOTTEN}: on request"
    try:
        size = row["_size"] if row["_size"] >= 0 else os.stat(row["_file"]).st_size
        if not LAYOUTS[layout].in_order and size > MAX_BYTES:
            return None, f"too_many_bytes: {size}"
        data = LAYOUTS[layout].read(row["_file"], row["_position"], row["_size"])
    except NotAFileError as error:
        return None, f"not_a_file: {error.strerror}"
    except OF_ONE_FILE as error:
        return None, f"missing_file: {error.strerror or error}"
    except (OSError, pa.ArrowException) as error:
        if getattr(error, "errno", None) is None:  # an error from Arrow: a page that cannot be unpacked
            return None, f"unreadable: {error}"
        raise UserError(
            f"cannot read {row['url']} from {row['_file']}: {error}. What is done is kept: once the "
            "disk is in order, run the same command again"
        ) from error
    return (None, f"too_many_bytes: {len(data)}") if len(data) > MAX_BYTES else (data, "")


def _link(rows: list[Row], schema: pa.Schema, path: Path, card: SourceCard, layout: str) -> dict[str, Any] | None:
    """Link to the rows' tar, if no image in it has to change and a loader finds each by its key; else return None.

    path: of the shard's files, without a suffix. Returns the statistics.
    """
    if not LAYOUTS[layout].shard_per_file or any(row["_key"] is None for row in rows):
        return None
    described, counts = [], Counter[str]()
    for row in rows:
        outcome = Stored(status="failed_to_download")
        data, outcome.error_message = _read(row, layout)
        if data is not None:
            problem, repaired = inspect(data, card.image_rules.min_side, card.image_rules.max_aspect)
            outcome = Stored(status="failed_to_resize", error_message=problem)
            if problem is None:
                size = _size_that_fits(data, card)
                if repaired is not None or size is None:
                    return None
                outcome = Stored(None, "success", None, *size, *size, hashlib.sha256(data).hexdigest())
        described.append(outcome.described(_shown(row), row["_key"]))
        counts[outcome.status] += 1
    path.with_suffix(".tar").symlink_to(rows[0]["_file"])
    shard_index(path.with_suffix(".tar"))  # written next to the link, not next to the tar
    pq.write_table(pa.Table.from_pylist(described, schema), path.with_suffix(".parquet"), compression="zstd")
    return statistics(counts)


def _size_that_fits(data: bytes, card: SourceCard) -> tuple[int, int] | None:
    """Return width and height in pixels of an image that the card's resizing would not change; else None."""
    with Picture.open(io.BytesIO(data)) as image:
        width, height = image.size
    mode, size = card.download.resize_mode, card.download.image_size
    if mode == "no":
        return width, height
    if mode in ("border", "center_crop"):
        return (width, height) if width == height == size else None
    side = min(width, height) if mode == "keep_ratio" else max(width, height)
    fits = side <= size if card.download.only_if_bigger else side == size
    return (width, height) if fits else None


BATCH = 10_000
_TEXTS, _NUMBERS = ("url", "file", "group", "key", "problem"), ("position", "size", "part", "n")
ROW_SCHEMA = pa.schema(
    [("captions", pa.list_(pa.string())), *((n, pa.string()) for n in _TEXTS), *((n, pa.int64()) for n in _NUMBERS)]
)


def find_part(layout: str, part: Path | None, number: int, reading: Reading, out: Path, forgotten: Forgotten) -> int:
    """List the rows of one part into ``out``; return 1, for the progress. Runs in a worker process."""
    with replacing(out) as path, pq.ParquetWriter(path, ROW_SCHEMA, compression="zstd") as writer:
        rows_found = (_unless_forgotten(row, layout, forgotten) for row in rows_of(layout, part, reading))
        n = 0
        while batch := list(islice(rows_found, BATCH)):
            rows = [
                {**vars(image), "captions": [_valid(c) for c in image.captions], "part": number, "n": n + i}
                for i, image in enumerate(batch)
            ]
            for row in rows:
                row |= {name: _valid(row[name]) for name in ("url", "file", "problem") if row[name] is not None}
            writer.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA))
            n += len(batch)
    return 1


def _unless_forgotten(row: ListedRow, layout: str, forgotten: Forgotten) -> ListedRow:
    """Return the row, or, if its image was forgotten, one that keeps its place among the others and names nothing."""
    data = None
    if forgotten.files and row.problem is None:
        data, _ = _read({"url": row.url, "_file": row.file, "_position": row.position, "_size": row.size}, layout)
    place = place_of(row.file, row.position)
    if not forgotten.refuses(row.url, data) and not forgotten.refuses(place):
        return row
    return ListedRow(FORGOTTEN, [], f"{FORGOTTEN} {hash_of_url(place)}", problem=f"{FORGOTTEN}: on request")


def _valid(text: str) -> str:
    """Return a text without lone surrogates (from JSON or names that are not UTF-8), which no Parquet file can hold."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode()


def group_captions(sorted_rows: pa.RecordBatchReader, by: Sequence[str], once: bool = False) -> Iterator[pa.Table]:
    """Yield one row for each run of rows with equal columns ``by``, in tables of any size; the last may be empty.

    The column ``captions`` (strings, or lists of them) becomes the list of all values in the run, in their order and,
    if ``once``, without repetitions; the other columns come from the first row.
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
