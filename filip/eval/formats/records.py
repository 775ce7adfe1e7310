"""A table with a row per image: captions to select from, or labels, in columns that the layout names.

    layouts:
      records: {path: sugar_crepe, split: test, annotations: data/add_att.json, images: val2017, image: filename,
                positive: caption, negative: negative_caption}

The table may be JSON, JSON lines, CSV, TSV or Parquet; its column ``split``, if it has one, says which rows are read.
:mod:`filip.eval.formats.captions` reads images with captions. Options:

    annotations       the table below ``path``; left out: ``path`` is the table itself
    images            folder of the images below ``path``; left out: the table's folder
    image, label      columns; left out: the usual names are looked for (filip/sets/columns.py)
    positive, negative    columns of captions to select from (a string or a list; or a list of columns), for selection
    options           a column with all captions to select from, the true one first
    crop              column of a box [x, y, width, height] in pixels, or the four columns of it: only that is shown
    category          column of the categories, reported separately and as a mean over them
    category_least    rows that a category needs to count in that mean
    category_without    categories that do not count in it
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from filip.common.errors import UserError
from filip.common.files import nothing_at
from filip.common.progress import say
from filip.common.text_files import read_file
from filip.eval.benchmark import BenchmarkCard
from filip.eval.datasets import EvalSet, Sample
from filip.images.rgb import FORMATS, to_rgb, upright, upright_box
from filip.sets.columns import LABEL_COLUMNS, image_column, one_line, split_in, texts
from filip.sets.image_set import Account
from filip.sets.layout import FOR_EVALUATION, SPLITS, Reading, inside, other_split
from filip.sets.table import file_named
from filip.sets.tables import Broken, read_table

KEYS = (
    *("annotations", "images", "image", "label", "positive", "negative", "options"),
    *("crop", "category", "category_least", "category_without"),
)


def open_set(card: BenchmarkCard, root: str | Path) -> EvalSet:
    options = card.layout.options
    if card.kind == "retrieval":
        raise UserError(f"card {card.name}: images with captions are read by the layout `captions`; write that one")
    if unknown := sorted(set(options) - set(KEYS)):
        raise UserError(f"card {card.name}: layouts.records has no option {unknown[0]!r}; it has {', '.join(KEYS)}")
    return RecordSet(Path(root) / card.path, card.kind, options, card.split)


class Records:
    """The rows of a table by number, each a dict, in the order of the file; account: the lines that cannot be read.

    A JSON file is a list of objects, or an object of objects (SugarCrepe's form). Raises UserError for a file that is
    not there, cannot be read, or has no rows.
    """

    def __init__(self, place: Path):
        if not place.is_file():
            raise UserError(nothing_at(place, "give a table of annotations"))
        self.account = Account()
        self._row: Callable[[int], dict[str, Any]]
        if place.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet

            try:
                table = pyarrow.parquet.read_table(place)
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{place} is not a readable parquet table: {error}") from error
            # Row by row: pictures may be in the table itself, and need not all be Python objects at once.
            self._row = lambda index: table.slice(index, 1).to_pylist()[0]
            self._count, self.columns = table.num_rows, table.column_names
        else:
            read, rows = read_table(place), []
            for row in read.rows:
                if isinstance(row, Broken):
                    self.account.add(f"{place.name}:{row.number}", f"{row.reason}: {row.why}")
                else:
                    rows.append(row[1])
            self._row, self._count, self.columns = rows.__getitem__, len(rows), read.names
        if not self._count:
            raise UserError(f"{place} has no rows" + (f": {left}" if (left := self.account.line()) else ""))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._row(index)


class RecordSet(EvalSet):
    """A set in a table, a sample for each row; a line on stderr names the rows that are left out, and why.

    place: the table, or the folder of ``annotations``; kind: the card's kind; options: see the module; split: "" =
    test, else validation, else the first.
    """

    def __init__(self, place: Path, kind: str, options: dict[str, Any], split: str = ""):
        self.options, self.kind, self.classes = options, kind, None
        table = place / options["annotations"] if "annotations" in options else place
        self.rows = Records(table)
        self.root = os.path.abspath((place if place.is_dir() else place.parent) / options.get("images", ""))
        self.reading = Reading(table, image_column=options.get("image"), prefer=FOR_EVALUATION)
        self.image = image_column(self.rows.columns, self.reading, table)
        self._check_columns(table)
        account, splits = self.rows.account, dict[int, str | None]()
        for number in range(len(self.rows)):
            row = self.rows[number]
            if (problem := self._problem(row)) is None:
                splits[number] = split_in(row)
            else:
                account.add(self._name(row, number), problem)
        if not splits:
            raise UserError(f"no row of {table} can be used: {account.line()}")
        there = Counter(splits.values())
        reading = replace(self.reading, there=there, split=(split or None) if any(there) else None)
        taken = reading.splits_taken() or there
        self.others = {SPLITS.get(other.lower(), other) for other in there if other and other not in taken}
        self.numbers = [number for number, own in splits.items() if own in taken]
        for number, own in splits.items():
            if own not in taken:
                account.add(self._name(self.rows[number], number), other_split(own))
        if left := account.line():
            say(f"{table}: {len(self.numbers):,} rows; left out: {left}")
        if kind == "classification":  # of all splits, so that each numbers them alike
            self.classes = sorted({str(self.rows[number][self.label]) for number in splits})
            self.number = {name: number for number, name in enumerate(self.classes)}

    def _check_columns(self, table: Path) -> None:
        """Raise UserError for an option that names a column which is not there."""
        self.label = self.options.get("label") or next((n for n in LABEL_COLUMNS if n in self.rows.columns), "label")
        named = [self.label] if self.kind == "classification" else [self.options.get("category")]
        if self.kind == "selection":
            for option in ("options",) if "options" in self.options else ("positive", "negative"):
                if option not in self.options:
                    raise UserError(f"{table}: say in the card which column has the captions: {option}: COLUMN")
                named += _names(self.options[option])
        named += _names(self.options.get("crop"))
        if absent := [name for name in named if name and name not in self.rows.columns]:
            raise UserError(f"{table} has no column {absent[0]!r}; it has {', '.join(self.rows.columns)}")

    def _problem(self, row: dict[str, Any]) -> str | None:
        """Return why a row cannot be used; None if it can."""
        if not _stored(row.get(self.image)):
            path, outside = inside(self.root, file_named(row.get(self.image), self.reading))
            if outside is not None:
                return outside
            if not os.path.isfile(path):
                return "missing_file: No such file or directory"
        if self.kind == "classification":
            return "no_label" if row.get(self.label) in (None, "") else None
        return None if all(self._choices(row)) else "no_caption"

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Sample:
        number = self.numbers[index]
        row = self.rows[number]
        name = self._name(row, number)
        shown = _shown(self._picture(row), row, self.options.get("crop"))
        if self.kind == "classification":
            return Sample(name, label=self.number[str(row[self.label])], image=shown)
        true, false = self._choices(row)
        category = str(row[self.options["category"]]) if "category" in self.options else ""
        # Several rows may show one image: the number makes the key unique, the name is the cluster.
        key = f"{number} {name}"
        return Sample(key, captions=true + false, cluster=name, truths=len(true), category=category, image=shown)

    def files(self) -> list[str]:
        rows = (self.rows[number] for number in self.numbers)
        named = (file_named(row[self.image], self.reading) for row in rows if not _stored(row[self.image]))
        return [inside(self.root, name)[0] for name in named]

    def _name(self, row: dict[str, Any], number: int) -> str:
        """Return what identifies the picture of a row: its path, or the number of the row."""
        return file_named(row.get(self.image), self.reading) or f"{number:07d}"

    def _picture(self, row: dict[str, Any]) -> Image.Image:
        """Open the picture of a row as it is stored: bytes in the table, or a file below the root."""
        stored = _stored(row[self.image])
        if stored is None:
            path, outside = inside(self.root, file_named(row[self.image], self.reading))
            if outside is not None:
                raise OSError(outside)
            stored = read_file(path)
        return Image.open(io.BytesIO(stored), formats=FORMATS)

    def _choices(self, row: dict[str, Any]) -> tuple[list[str], list[str]]:
        """Return the true and the false captions of a row."""
        if "options" in self.options:
            every = one_line(texts(row.get(self.options["options"])))
            return every[:1], every[1:]
        true, false = (
            one_line([text for column in _names(self.options[option]) for text in texts(row.get(column))])
            for option in ("positive", "negative")
        )
        return true, false


def _names(columns: str | list[str] | None) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns or ())


def _stored(cell: Any) -> bytes | None:
    """Return the bytes of a picture that are in its cell; None if the cell names a file."""
    stored = cell.get("bytes") if isinstance(cell, dict) else cell
    return stored if isinstance(stored, bytes) else None


def _shown(stored: Image.Image, row: dict[str, Any], crop: str | list[str] | None) -> Image.Image:
    """Return the picture of a sample, upright; with ``crop`` the box in the stored pixels that its row names."""
    shown = to_rgb(upright(stored))
    if crop is None:
        return shown
    x, y, width, height = map(float, row[crop] if isinstance(crop, str) else [row[name] for name in crop])
    edges = tuple(int(edge) for edge in (x, y, x + width, y + height))
    return shown.crop(upright_box(stored, edges))  # type: ignore[arg-type]
