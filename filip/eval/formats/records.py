"""A table with a row per image: captions, labels, or captions to select from, in columns that the layout names.

    layouts:
      records: {path: sugar_crepe, split: test, annotations: data/add_att.json, images: val2017, image: filename,
                positive: caption, negative: negative_caption}

The table may be JSON, JSON lines, CSV, TSV, Parquet, or a data set that ``datasets`` saved. Options:

    annotations       the table below ``path``; left out: ``path`` is the table itself
    images            folder of the images below ``path``; left out: that of the table
    image, caption, label    columns; left out: the usual names are looked for (filip/sets/columns.py)
    positive, negative    columns of captions to select from (a string or a list; or a list of columns), for selection
    options           a column with all captions to select from, the true one first
    crop              column of a box [x, y, width, height] in pixels, or the four columns of it: only that is shown
    category          column of what is reported separately, and as a mean over categories
    category_least    rows that a category needs to count in that mean
    category_without    categories that do not count in it
    keep              {column: value}: only rows that have it, e.g. a split
    prefix            what stands before a name in the image column
    suffix            what stands behind it, e.g. ".jpg"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from filip.errors import UserError
from filip.eval import records
from filip.eval.benchmark import BenchmarkCard
from filip.eval.datasets import EvalSet, Sample, shown_box
from filip.rgb import to_rgb, upright
from filip.sets import columns

KEYS = (
    *("annotations", "images", "image", "caption", "label", "positive", "negative", "options"),
    *("crop", "category", "category_least", "category_without", "keep", "prefix", "suffix"),
)


def open_set(card: BenchmarkCard, root: str | Path) -> EvalSet:
    options = card.layout.options
    if unknown := sorted(set(options) - set(KEYS)):
        raise UserError(f"card {card.name}: layouts.records has no option {unknown[0]!r}; it has {', '.join(KEYS)}")
    return RecordSet(Path(root) / card.path, card.split, card.kind, options)


class RecordSet(EvalSet):
    """A set in a table.

    place: the table, or the folder of ``annotations``; kind: that of the card; options: see the module.
    """

    def __init__(self, place: Path, split: str, kind: str, options: dict[str, Any]):
        self.options = options
        table = place / options["annotations"] if "annotations" in options else place
        self.rows = records.read_records(table, split)
        self.folder = (place if place.is_dir() else place.parent) / options.get("images", "")
        self.image = options.get("image") or records.find_column(self.rows, columns.IMAGE_COLUMNS, "image", table)
        keep = options.get("keep", {})
        wanted = [n for n in range(len(self.rows)) if all(self.rows[n].get(k) == v for k, v in keep.items())]
        if not wanted:
            raise UserError(f"{table}: no row has {', '.join(f'{k} = {v}' for k, v in keep.items())}")
        self.kind, self.classes = kind, None
        if kind == "classification":
            self._read_labels(table)
        elif kind == "retrieval":
            known = columns.CAPTION_COLUMNS
            self.caption = options.get("caption") or records.find_column(self.rows, known, "caption", table)
        self.groups = self._groups(wanted)
        self._check(table)

    def _read_labels(self, table: Path) -> None:
        known = columns.LABEL_COLUMNS
        self.label = self.options.get("label") or records.find_column(self.rows, known, "label", table)
        if self.rows.names:
            self.classes = list(self.rows.names)
            self.number = {number: number for number in range(len(self.classes))}
            return
        self.classes = sorted({str(value) for value in self.rows.column(self.label)})
        self.number = {name: number for number, name in enumerate(self.classes)}  # type: ignore[misc]

    def _groups(self, wanted: list[int]) -> list[list[int]]:
        """Return the rows of each sample: for retrieval those of one image, which then has several captions."""
        if self.kind != "retrieval" or not isinstance(self.rows[wanted[0]][self.image], str):
            return [[number] for number in wanted]
        by_image: dict[str, list[int]] = {}
        for number in wanted:
            by_image.setdefault(self.rows[number][self.image], []).append(number)
        return list(by_image.values())

    def _check(self, table: Path) -> None:
        """Raise UserError now if the first sample cannot be made, which is where a wrong option shows."""
        try:
            self[0]
        except KeyError as error:
            raise UserError(f"{table} has no column {error}; it has {', '.join(self.rows.columns)}") from error
        except OSError as error:
            raise UserError(f"{table} names an image that cannot be read: {error}") from error

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Sample:
        numbers = self.groups[index]
        row = self.rows[numbers[0]]
        cell = row[self.image]
        if isinstance(cell, str):
            cell = self.options.get("prefix", "") + cell + self.options.get("suffix", "")
        name = records.image_name(cell, numbers[0])
        shown = _shown(records.read_image(cell, self.folder), row, self.options.get("crop"))
        if self.kind == "classification":
            value = row[self.label]
            label = self.number[value if self.rows.names else str(value)]  # type: ignore[index]
            return Sample(name, label=label, **shown)
        if self.kind == "retrieval":
            captions = [caption for n in numbers for caption in _texts(self.rows[n], self.caption)]
            return Sample(name, captions=captions, **shown)
        true, false = self._choices(row)
        category = str(row[self.options["category"]]) if "category" in self.options else ""
        # Several rows may show one image: the number makes the key unique, the name is the cluster.
        key = f"{numbers[0]} {name}"
        return Sample(key, captions=true + false, cluster=name, truths=len(true), category=category, **shown)

    def _choices(self, row: dict[str, Any]) -> tuple[list[str], list[str]]:
        if "options" in self.options:
            every = _texts(row, self.options["options"])
            return every[:1], every[1:]
        return _texts(row, self.options["positive"]), _texts(row, self.options["negative"])


def _texts(row: dict[str, Any], columns: str | list[str]) -> list[str]:
    """Return the strings in a column or several; a cell may hold a list."""
    cells = [row[name] for name in ([columns] if isinstance(columns, str) else columns)]
    return [str(text) for cell in cells for text in ([cell] if isinstance(cell, str) else cell)]


def _shown(stored: Image.Image, row: dict[str, Any], crop: str | list[str] | None) -> dict[str, Any]:
    """Return the picture of a sample, upright; with ``crop`` a box in the stored pixels, and where it is."""
    if crop is None:
        return {"image": to_rgb(upright(stored))}
    x, y, width, height = map(float, row[crop] if isinstance(crop, str) else [row[name] for name in crop])
    box = (x, y, x + width, y + height)
    return shown_box(stored, box, tuple(int(edge) for edge in box))
