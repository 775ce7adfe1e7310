"""Read a folder of images and a table of paths and captions, or the table alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filip.errors import UserError
from filip.sets.columns import caption_columns, captions_of, group_of, image_column, split_in
from filip.sets.layout import Layout, Reading, Row, files_in, inside, is_picture, split_of_folder, unused, walk
from filip.sets.parquet import image_bytes_column
from filip.sets.tables import JSON_PACKED, SUFFIXES, Broken, read_table

# if a folder has several tables, the one with such a name counts
USUAL = ("metadata", "captions", "annotations", "labels")


class Listed(Layout):
    """Layout of a list of images, given alone or with its folder, to which the names are relative."""

    def lists(self, reading: Reading) -> list[Path]:
        """Return the lists of this layout in a folder."""
        raise NotImplementedError

    def parts(self, reading: Reading) -> list[Path]:
        if reading.place.is_file():
            return [reading.place] if self.fits(reading.place) else []
        found = self.lists(reading)
        if len(found) > 1:
            usual = [path for path in found if path.name.split(".")[0].lower() in USUAL]
            if len(usual) != 1:
                raise UserError(
                    f"{reading.place} holds several tables ({', '.join(path.name for path in found[:5])}): name the "
                    f"one with the captions, such as {found[0]}"
                )
            found = usual
        return found

    def fits(self, path: Path) -> bool:
        """Return whether a file is a list of this layout."""
        raise NotImplementedError

    def files(self, reading: Reading) -> Iterator[str]:
        parts = self.parts(reading)
        yield from map(os.path.abspath, parts)
        yield from (row.file for part in parts for row in self.find(part, reading))
        if reading.place.is_dir():
            yield from (row.file for row in self.rest(reading, parts))

    def rest(self, reading: Reading, parts: Sequence[Path]) -> Iterator[Row]:
        """Yield a row for each file; those of pictures that the list names are merged with the rows of the list."""
        taken = {os.path.abspath(part) for part in parts}
        for path, problem in walk(reading.place, reading.inside_only, without=reading.without):
            if os.path.abspath(path) in taken:
                continue
            if problem is None and is_picture(path):
                split = split_of_folder(path, reading.place)
                yield Row(reading.name_of(path), [], os.path.abspath(path), split=split)
            else:
                row = unused(path, reading, problem)
                # the place of a file that the list names
                yield Row(row.url, [], row.file, 0, problem=row.problem)


class Table(Listed):
    """Layout of a table, in which rows that name the same image are one image with several captions."""

    about = "a folder of images with a table (CSV, TSV, JSON lines, Parquet) of path and caption"

    def lists(self, reading: Reading) -> list[Path]:
        found = files_in(reading, [*SUFFIXES, ".json"], deep=False)
        usual = [path for path in found if path.suffix != ".json" or path.stem.lower() in USUAL]
        return [path for path in usual if not _has_bytes(path)]

    def fits(self, path: Path) -> bool:
        return path.name.lower().endswith((*SUFFIXES, ".txt", ".json", *JSON_PACKED)) and not _has_bytes(path)

    def splits(self, part: Path, reading: Reading) -> set[str | None]:
        table, root = read_table(part, reading.header, reading.columns), reading.root_of(part)
        try:
            image = image_column(table.names, reading, part)
        except UserError:  # find says so
            return set()
        rows = (row[1] for row in table.rows if not isinstance(row, Broken))
        return {
            _split(record, inside(root, file_named(record.get(image), reading))[0], root, reading) for record in rows
        }

    def columns(self, part: Path, reading: Reading) -> list[str]:
        return read_table(part, reading.header, reading.columns).names

    def find(self, part: Path, reading: Reading) -> Iterator[Row]:
        root, name = reading.root_of(part), reading.name_of(part)
        table = read_table(part, reading.header, reading.columns)
        image = image_column(table.names, reading, part)
        columns = caption_columns(table.names, reading, part)
        empty = dict.fromkeys(table.names)
        for row in table.rows:
            if isinstance(row, Broken):
                place = f"{name}:{row.number}"
                yield Row(place, [], f"{part}#{row.number}", problem=f"{row.reason}: {row.why}")
                continue
            number, record = row
            wanted = all(str(record.get(column)) == value for column, value in reading.only.items())
            file = file_named(record.get(image), reading)
            path, problem = inside(root, file)
            problem = problem if wanted else "not_wanted: `only` in the card"
            yield Row(
                file or f"{name}:{number} (a row without {image})",
                captions_of(record, columns) if problem is None else [],
                path or f"{part}#{number}",  # rows of one file are one image
                group=group_of({**empty, **record}, reading, part) if reading.group_column else None,
                problem=problem,
                split=_split(record, path, root, reading),
            )


def _split(record: Mapping[str, Any], path: str, root: str, reading: Reading) -> str | None:
    """Return the split of a row: that of its column, or else of the folder of its image."""
    return split_in(record, reading) or split_of_folder(Path(path), Path(root))


def file_named(value: Any, reading: Reading) -> str:
    """Return the path that a cell names, which may be Hugging Face's {path, bytes}; "" if it names none."""
    if isinstance(value, Mapping):
        value = value.get("path") or value.get("file_name")
    name = "" if value is None else str(value).strip()
    return reading.image_name.replace("{}", name) if name else ""


def _has_bytes(path: Path) -> bool:
    return path.suffix == ".parquet" and image_bytes_column(path) is not None
