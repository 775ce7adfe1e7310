"""Store one shard of images on disk: the files that a download writes, or a link to a tar that fits as it is."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from filip.data.cards import SourceCard
from filip.data.fetching.forgotten import FORGOTTEN, Forgotten
from filip.data.fetching.image_rules import inspect
from filip.data.fetching.img2dataset_setup import make_resizer
from filip.data.fetching.in_progress import CRASHED, InProgress
from filip.data.fetching.ordered_writer import OrderedWriter
from filip.data.fetching.outcomes import MAX_BYTES
from filip.data.fetching.shards import SHARD_DIGITS
from filip.data.lists.parquet_rows import row_group
from filip.data.loading.shard_index import shard_index
from filip.data.remote_tars import is_there, send
from filip.errors import UserError
from filip.files import digest, file_state, publish, write_json
from filip.sets.layouts import LAYOUTS
from filip.sets.text import NotAFileError

# the last is published last: with it, a shard is complete
SUFFIXES = (".tar", ".index", ".parquet", "_stats.json")
LOCATORS = ("_file", "_position", "_size", "_key", "_part")  # columns of the list that no shard shows
OUTCOME = pa.schema(
    [
        ("key", pa.string()),
        ("status", pa.string()),
        ("error_message", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("original_width", pa.int64()),
        ("original_height", pa.int64()),
        ("sha256", pa.string()),  # hash of the file as it was found
    ]
)
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
    complete = is_there(folder / f"{shard:05d}.tar") and all(
        (folder / f"{shard:05d}{suffix}").exists() for suffix in SUFFIXES[1:]
    )
    # rows, settings, and the files themselves: a missing one may be in its place by now
    return complete and bool(stats.get("made_from") == _identity(_rows(kept, shard), card))


def _rows(kept: Path, shard: int) -> list[Row]:
    rows: list[Row] = row_group(kept, shard).to_pylist()
    return rows


def _identity(rows: list[Row], card: SourceCard) -> str:
    load = card.download
    pictures = (load.image_size, load.resize_mode, load.only_if_bigger, load.encode_format, load.quality)
    files = {row["_file"]: file_state(row["_file"]) for row in rows}
    return digest([rows, files, asdict(card.image_rules), pictures])


def store_shard(kept: Path, shard: int, folder: Path, card: SourceCard, layout: str, tars: str | None = None) -> int:
    """Make a shard from a row group of ``kept``; return how many images it was asked for. Runs in a worker.

    tars: folder of a bucket to which the tar is sent.
    """
    rows = _rows(kept, shard)
    # before the files are read: one that changes meanwhile is read again next time
    made_from = _identity(rows, card)
    progress = InProgress(folder / "_work" / f"{shard:05d}.progress")
    forgotten = Forgotten.load(folder)
    staging = folder / "_work" / f"{shard:05d}.{os.uname().nodename}.{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    complete = False
    try:
        described = None if forgotten.path.exists() else _link(rows, kept, shard, staging, card, layout)
        if described is None:
            described = _write(rows, kept, shard, staging, card, layout, progress, forgotten)
        successes = sum(row["status"] == "success" for row in described)
        stats = {
            "count": len(described),
            "successes": successes,
            "failed_to_download": sum(row["status"] == "failed_to_download" for row in described),
            "failed_to_resize": sum(row["status"] == "failed_to_resize" for row in described),
            "made_from": made_from,
        }
        write_json(staging / f"{shard:05d}_stats.json", stats)
        if tars is not None:
            name = f"{shard:05d}"
            send(staging / f"{name}.tar", tars, staging / f"{name}.parquet", staging / f"{name}_stats.json")
        # remove the mark of completeness first: while a shard is replaced, none must look complete
        (folder / f"{shard:05d}_stats.json").unlink(missing_ok=True)
        for suffix in SUFFIXES:
            publish(staging / f"{shard:05d}{suffix}", folder / f"{shard:05d}{suffix}")
        complete = True
    finally:
        progress.close(complete)
        shutil.rmtree(staging, ignore_errors=True)
    return len(rows)


def _schema(kept: Path, shard: int) -> pa.Schema:
    fields = [field for field in row_group(kept, shard).schema if field.name not in LOCATORS]
    return pa.schema([*fields, *OUTCOME])


def _read(row: Row, layout: str) -> tuple[bytes | None, str]:
    """Return the bytes of an image, or None and the reason. Raises UserError when the disk fails."""
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


def _write(
    rows: list[Row],
    kept: Path,
    shard: int,
    staging: Path,
    card: SourceCard,
    layout: str,
    progress: InProgress,
    forgotten: Forgotten,
) -> list[Row]:
    """Resize and encode as the download does; return the rows with their outcome."""
    resizer, encode_format = make_resizer(card), card.download.encode_format
    writer = OrderedWriter(shard, str(staging), True, SHARD_DIGITS, _schema(kept, shard), encode_format)
    for number, row in enumerate(rows):
        described = _described(row, f"{shard:05d}{number:06d}")
        data, problem = _read(row, layout)
        image = None
        if forgotten.refuses(row["url"], data):
            data, problem = None, f"{FORGOTTEN}: on request"
        if data is not None and not progress.survives(number, resizer, io.BytesIO(data)):
            data, problem = None, CRASHED
        if data is None:
            described |= {"status": "failed_to_download", "error_message": problem}
        else:
            image, *sizes, error = resizer(io.BytesIO(data))
            described["sha256"] = hashlib.sha256(data).hexdigest()
            described |= dict(zip(("width", "height", "original_width", "original_height"), sizes, strict=True))
            described["status"] = "success" if error is None else "failed_to_resize"
            described["error_message"] = error
        writer.write(image, described["key"], row["caption"], described)
    writer.close()
    return writer.rows


def _described(row: Row, key: str) -> Row:
    shown = {name: value for name, value in row.items() if name not in LOCATORS}
    return {**shown, **dict.fromkeys(OUTCOME.names), "key": key}


def _link(rows: list[Row], kept: Path, shard: int, staging: Path, card: SourceCard, layout: str) -> list[Row] | None:
    """Link to the rows' tar, if no image in it has to change and a loader finds each by its key; else return None."""
    if not LAYOUTS[layout].shard_per_file or any(row["_key"] is None for row in rows):
        return None
    described = []
    for row in rows:
        outcome = _described(row, row["_key"])
        data, problem = _read(row, layout)
        if data is not None:
            outcome["sha256"] = hashlib.sha256(data).hexdigest()
            found, repaired = inspect(data, card.image_rules.min_side, card.image_rules.max_aspect)
            if found is None:
                size = _size_that_fits(data, card)
                if repaired is not None or size is None:
                    return None
                sizes = zip(("width", "height", "original_width", "original_height"), (*size, *size), strict=True)
                outcome |= dict(sizes)
            problem = found or ""
        failed = "failed_to_download" if data is None else "failed_to_resize"
        outcome |= {"status": failed if problem else "success", "error_message": problem or None}
        described.append(outcome)
    tar = staging / f"{shard:05d}.tar"
    tar.symlink_to(rows[0]["_file"])
    shard_index(tar)  # written next to the link, not next to the tar
    pq.write_table(
        pa.Table.from_pylist(described, _schema(kept, shard)), tar.with_suffix(".parquet"), compression="zstd"
    )
    return described


def _size_that_fits(data: bytes, card: SourceCard) -> tuple[int, int] | None:
    """Return width and height in pixels of an image that the card's resizing would not change; else None."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    mode, wanted = card.download.resize_mode, card.download.image_size
    if mode == "no":
        return width, height
    if mode in ("border", "center_crop"):
        return (width, height) if width == height == wanted else None
    side = min(width, height) if mode == "keep_ratio" else max(width, height)
    fits = side <= wanted if card.download.only_if_bigger else side == wanted
    return (width, height) if fits else None
