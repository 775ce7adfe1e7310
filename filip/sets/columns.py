"""Find the captions in records and in the files that belong to one image.

Columns of images, captions and labels are found by their usual names. The files of an image are texts and records in a
folder or in a tar.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from filip.common.errors import UserError
from filip.common.text_files import UNKNOWN, decoded
from filip.sets.layout import SPLIT_COLUMNS, SPLITS, Reading, is_picture

# If no column is named, the first of these that exists is used.
IMAGE_COLUMNS = (
    *("path", "image", "image_path", "img_path", "file_name", "filename", "filepath", "file", "image_file"),
    *("img", "image_name", "datei"),
)
CAPTION_COLUMNS = (
    *("caption", "captions", "text", "texts", "sentences", "sentence", "alt_text", "alt", "description"),
    *("title", "comment", "conversations", "caption_reference_description"),
)
URL_COLUMNS = ("url", "link", "image_url", "img_url", "src", "originalurl", "imageurl")
LABEL_COLUMNS = ("label", "class", "cls", "category")


def texts(value: Any) -> list[str]:
    """Return the captions in a value of a record: a text, a list of them or of records, or the answers of a talk."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, bytes):
        text = decoded(value)
        return [] if text is None else [text]
    if isinstance(value, Mapping):
        if "from" in value:  # a turn of LLaVA's conversations
            return texts(value.get("value")) if value["from"] == "gpt" else []
        first = next((value[name] for name in ("raw", *CAPTION_COLUMNS) if name in value), None)
        return texts(first)
    if isinstance(value, Sequence):
        return [text for item in value for text in texts(item)]
    return [str(value)]


def one_line(captions: Sequence[str]) -> list[str]:
    """Return the captions, each on one line without spaces around it; empty ones are left out."""
    return [line for text in captions if (line := " ".join(text.replace("\0", " ").split()))]


def usual_column(names: Sequence[str], usual: Sequence[str]) -> str | None:
    """Return the column that has the first of the usual names, in capitals or not."""
    lower = {name.lower(): name for name in reversed(names)}
    return next((lower[name] for name in usual if name in lower), None)


def image_column(names: Sequence[str], reading: Reading, where: object) -> str:
    """Return the column that names the images. Raises UserError if there is none."""
    candidates = [reading.image_column] if reading.image_column else IMAGE_COLUMNS
    column = reading.image_column if reading.image_column in names else usual_column(names, candidates)
    if column is None:
        raise UserError(
            f"{where} has no column {' or '.join(map(repr, candidates))}; its columns are {', '.join(names)}. Say in a "
            "card which holds the paths: image_column: NAME"
        )
    return column


def caption_columns(names: Sequence[str], reading: Reading, where: object) -> list[str]:
    """Return the columns that hold the captions. Raises UserError if there is none."""
    named = reading.caption_columns or [reading.caption_column]
    if all(column in names for column in named):
        return list(named)
    if not reading.caption_columns:
        usual = usual_column(names, CAPTION_COLUMNS)
        if usual:
            return [usual]
    raise UserError(
        f"{where} has no column {', '.join(map(repr, named))}; its columns are {', '.join(names)}. Say in a card "
        "which holds the captions: caption_column: NAME"
    )


def captions_of(record: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """Return the captions of a record, several columns joined, as in a list of URLs."""
    if len(columns) == 1:
        return one_line(texts(record.get(columns[0])))
    joined = ". ".join(text for column in columns for text in texts(record.get(column)) if text.strip())
    return one_line([joined])


@lru_cache
def split_columns(names: tuple[str, ...]) -> list[str]:
    """Return the columns that may hold the split of a row, in the order in which they count."""
    columns = [name for name in names if name.lower() in SPLIT_COLUMNS]
    return sorted(columns, key=lambda name: SPLIT_COLUMNS.index(name.lower()))


def split_in(record: Mapping[str, Any]) -> str | None:
    """Return the split in a record. Columns but `split` may hold something else: there, only usual words are one."""
    for column in split_columns(tuple(record)):
        value = "" if record[column] is None else str(record[column]).strip()
        if column.lower() == "is_test":
            value = {"true": "test", "1": "test", "false": "train", "0": "train"}.get(value.lower(), "")
        if value and (column.lower() == "split" or value.lower() in SPLITS):
            return value
    return None


def group_of(record: Mapping[str, Any], reading: Reading, where: object) -> str | None:
    """Return the value of the group_column as text. Raises UserError if that column does not exist."""
    if reading.group_column is None:
        return None
    if reading.group_column not in record:
        raise UserError(
            f"{where} has no column '{reading.group_column}' (group_column); its columns are {', '.join(record)}"
        )
    value = record[reading.group_column]
    return None if value is None else str(value)


CAPTION_SUFFIXES = ("txt", "caption", "captions", "text")  # each line is a caption
TEXT_SUFFIXES = (*CAPTION_SUFFIXES, "json")
MAX_CAPTION_BYTES = 1 << 20


class About(NamedTuple):
    """What the texts of an image say."""

    captions: list[str]
    group: str | None = None
    problem: str | None = None
    split: str | None = None


def captions_in(files: Mapping[str, Callable[[], bytes]], reading: Reading) -> About:
    """Return the captions of an image, its group, the fault of its texts, and its split.

    files: functions that read the bytes of each text of the image, by its suffix (``txt``, ``meta.json``). A record
    that has caption's column, or a list of captions, counts first: the text that img2dataset writes repeats it. Then
    count the lines of all texts, without repetitions; then other usual keys of the record, but for a title that is a
    picture's name (Google Takeout).
    """
    record: dict[str, Any] = {}
    problem = None
    for suffix, content in files.items():
        if suffix.rpartition(".")[2] == "json":
            about = _record(content())
            problem = problem or (None if about is not None else f"not_text: .{suffix} is not a JSON object")
            record |= about or {}
    value = record.get(reading.group_column) if reading.group_column else None
    group = None if value is None else str(value)
    named = reading.caption_columns or [reading.caption_column]
    captions: list[str] = []
    if record and all(column in record for column in named):
        captions = captions_of(record, named)
    if isinstance(record.get("captions"), list) and not reading.caption_columns:
        captions = one_line(texts(record["captions"]))
    if captions:
        return About(captions, group, None, split_in(record))
    for kind in CAPTION_SUFFIXES:
        for suffix, content in files.items():
            if suffix.rpartition(".")[2] == kind:
                lines = lines_of(content(), reading.encoding)
                if lines is None:
                    problem = problem or f"not_text: {UNKNOWN} (.{suffix})"
                captions += lines or []
    if not captions:
        usual = (one_line(texts(record.get(name))) for name in CAPTION_COLUMNS)
        captions = next((some for some in usual if some and not is_picture(Path(some[0]))), [])
    return About(list(dict.fromkeys(captions)), group, None if captions else problem, split_in(record))


def lines_of(data: bytes, encoding: str | None = None) -> list[str] | None:
    """Return the captions in a text, one a line; None if it cannot be read."""
    text = decoded(data, encoding)
    return None if text is None else one_line(text.splitlines())


def _record(data: bytes) -> dict[str, Any] | None:
    """Return the object in a JSON; a list is taken as captions."""
    try:
        record = json.loads(decoded(data) or "")
    except (ValueError, RecursionError):
        return None
    if isinstance(record, list):
        return {"captions": record}
    return record if isinstance(record, dict) else None
