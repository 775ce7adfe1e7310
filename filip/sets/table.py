"""Read a table of paths and captions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from filip.common.errors import UserError
from filip.sets.columns import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    caption_columns,
    captions_of,
    group_of,
    image_column,
    split_in,
    usual_column,
)
from filip.sets.layout import Reading, Row, is_picture
from filip.sets.listed import (
    SAMPLE,
    USUAL,
    Finder,
    Listed,
    by_name,
    finder,
    last_part,
    lists_in,
    pictures_below,
    split_of_row,
)
from filip.sets.parquet import image_bytes_column
from filip.sets.tables import JSON_PACKED, SUFFIXES, Broken, Record, Rows, read_table
from filip.sets.text import decoded, read_file

HEAD = 20_000  # bytes of a text or a JSON by which a table is known
NUMBER = re.compile(r"#\d+$")  # of a caption, behind the name of its image in Flickr8k


class Table(Listed):
    """Layout of a table, in which rows that name the same image are one image with several captions."""

    about = "a folder of images with a table (CSV, TSV, JSON lines, Parquet) of path and caption"

    def lists(self, reading: Reading) -> list[Path]:
        paths = lists_in(reading, [*SUFFIXES, ".json", ".txt"], _is_list)
        return [path for path in paths if path.parent == reading.place or _has_usual_columns(path)]

    def fits(self, path: Path) -> bool:
        return path.name.lower().endswith((*SUFFIXES, ".txt", ".json", *JSON_PACKED)) and not _has_bytes(path)

    def splits(self, part: Path, reading: Reading) -> Counter[str | None]:
        try:
            table = _open(part, reading)
        except UserError:  # find reports it
            return super().splits(part, reading)
        rows = (row[1] for row in table.rows if not isinstance(row, Broken))
        return Counter(
            split_of_row(split_in(record), table.find(file_named(record.get(table.image), reading))[0], part, reading)
            for record in rows
        )

    def columns(self, part: Path, reading: Reading) -> list[str]:
        return _rows(part, reading).names

    def find(self, part: Path, reading: Reading) -> Iterator[Row]:
        name, table = reading.name_of(part), _open(part, reading)
        empty = dict.fromkeys(table.names)
        for row in table.rows:
            if isinstance(row, Broken):
                place = f"{name}:{row.number}"
                yield Row(place, [], f"{part}#{row.number}", problem=f"{row.reason}: {row.why}")
                continue
            number, record = row
            matches = all(str(record.get(column)) == value for column, value in reading.only.items())
            file = file_named(record.get(table.image), reading)
            path, problem = table.find(file)
            problem = problem if matches else "not_wanted: `only` in the card"
            yield Row(
                file or f"{name}:{number} (a row without {table.image})",
                captions_of(record, table.captions) if problem is None else [],
                path or f"{part}#{number}",  # rows of one file are one image
                group=group_of({**empty, **record}, reading, part) if reading.group_column else None,
                problem=problem,
                split=split_of_row(split_in(record), path, part, reading),
            )


@dataclass
class _Open(Rows):
    """The rows of a table, the columns of its images and captions, and where its images are."""

    image: str
    captions: list[str]
    find: Finder


def _open(part: Path, reading: Reading) -> _Open:
    table = _rows(part, reading)
    start = list(islice(table.rows, SAMPLE))
    records = [row[1] for row in start if not isinstance(row, Broken)]
    image = _image_column(table.names, records, reading, part)
    captions = _caption_columns(table.names, records, image, reading, part)
    find = finder(part, reading, [file_named(record.get(image), reading) for record in records])
    return _Open(table.names, chain(start, table.rows), image, captions, find)


def _rows(part: Path, reading: Reading) -> Rows:
    table = read_table(part, reading.header, reading.columns, encoding=reading.encoding)
    first = next((n for n, name in enumerate(table.names) if _names_a_picture(name)), None)
    if first is None or not reading.header or reading.columns:
        return table
    # Flickr8k.token.txt has no header
    other = "caption" if len(table.names) == 2 else "column{}"
    names = ["image" if n == first else other.format(n) for n in range(len(table.names))]
    return read_table(part, False, names, encoding=reading.encoding)


def _image_column(names: Sequence[str], records: Sequence[Record], reading: Reading, part: Path) -> str:
    """Return the column with the usual name, or the only one that names pictures of the folder of the table."""
    try:
        return image_column(names, reading, part)
    except UserError:
        if reading.image_column:
            raise
        there = by_name(pictures_below(reading if reading.place.is_dir() else replace(reading, place=part.parent)))
        fitting = [
            c for c in names if any(last_part(file_named(record.get(c), reading)) in there for record in records)
        ]
        if len(fitting) != 1:
            raise
        return fitting[0]


def _caption_columns(
    names: Sequence[str], records: Sequence[Record], image: str, reading: Reading, part: Path
) -> list[str]:
    """Return the columns with the usual names, or the only other one with several words in its cells.

    A column of single words, such as a `text` of labels, gives way to the only one of several words that has a usual
    name within its own, such as `long_description`.
    """
    values = {c: {str(r.get(c) or "").strip() for r in records} for c in names if c != image}
    wordy = [c for c, cells in values.items() if any(" " in cell for cell in cells)]
    wordy = [c for c in wordy if len(values[c]) > 1] or wordy  # the same in every row is a photographer
    try:
        columns = caption_columns(names, reading, part)
    except UserError:
        if reading.caption_columns or len(wordy) != 1:
            raise
        return wordy
    longer = [c for c in wordy if {*re.split("[^a-z]+", c.lower())} & {*CAPTION_COLUMNS}]
    named = reading.caption_columns or reading.caption_column in names
    return columns if named or columns[0] in wordy or len(longer) != 1 else longer


def _is_list(path: Path) -> bool:
    """Return whether a file of a folder is a table of images; texts and JSON may be anything else."""
    if path.suffix.lower() not in (".txt", ".json"):
        return not _has_bytes(path)
    if path.stem.lower() in USUAL and path.suffix.lower() == ".json":
        return True
    start = decoded(read_file(path, size=HEAD).rpartition(b"\n")[0]) or ""
    if path.suffix.lower() == ".json":
        named = [any(f'"{name}"' in start for name in usual) for usual in (IMAGE_COLUMNS, CAPTION_COLUMNS)]
        return start.lstrip()[:1] == "[" and all(named)
    cells = [cell.strip().lower() for cell in re.split("[,;\t|]", start.partition("\n")[0])]
    header = any(cell in IMAGE_COLUMNS for cell in cells) and any(cell in CAPTION_COLUMNS for cell in cells)
    return header or (len(cells) == 2 and _names_a_picture(cells[0]))


def _has_usual_columns(path: Path) -> bool:
    """Return whether a table in a folder below is one of images, and not of something else beside them."""
    try:
        names = _rows(path, Reading(path)).names
    except UserError:
        return False
    return None not in (usual_column(names, IMAGE_COLUMNS), usual_column(names, CAPTION_COLUMNS))


def _names_a_picture(cell: str) -> bool:
    return is_picture(Path(NUMBER.sub("", cell)))


def file_named(value: Any, reading: Reading) -> str:
    """Return the path that a cell names, which may be Hugging Face's {path, bytes}; "" if it names none."""
    if isinstance(value, Mapping):
        value = value.get("path") or value.get("file_name")
    name = "" if value is None else str(value).strip()
    if NUMBER.search(name) and _names_a_picture(name):
        name = NUMBER.sub("", name)
    return reading.image_name.replace("{}", name) if name else ""


def _has_bytes(path: Path) -> bool:
    return path.suffix == ".parquet" and image_bytes_column(path) is not None
