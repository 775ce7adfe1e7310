"""Tables of images: rows from JSON, JSON lines, CSV, TSV, Parquet, or a Hugging Face data set on disk."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from filip.errors import UserError
from filip.files import nothing_at

SUFFIXES = (".json", ".jsonl", ".jsonlines", ".csv", ".tsv", ".parquet")
IMAGE_COLUMNS = (
    "image",
    "filename",
    "file_name",
    "image_path",
    "filepath",
    "img_path",
    "image_file",
    "path",
    "img",
)
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "sentences", "sentence", "description", "title")
LABEL_COLUMNS = ("label", "class", "cls", "category")


class Records:
    """Rows by number, each a dict, in the order of the file.

    names: of the classes, where the source numbers its labels and says what the numbers mean.
    """

    def __init__(
        self,
        count: int,
        row: Callable[[int], dict[str, Any]],
        columns: Sequence[str],
        names: list[str] | None,
    ):
        self.count, self._row, self.columns, self.names = count, row, list(columns), names

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._row(index)

    def column(self, name: str) -> list[Any]:
        """All values of a column. Raises KeyError if a row lacks it."""
        return [self[index][name] for index in range(self.count)]


def is_hugging_face(folder: Path) -> bool:
    """Whether a folder was written by ``datasets``' ``save_to_disk``."""
    return (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file()


def read_records(place: Path, split: str = "test") -> Records:
    """The rows of a file (by its suffix) or of a folder of Hugging Face's ``datasets``.

    split: of a folder with several. A JSON file is a list of objects, or an object of objects (SugarCrepe's form).
    Raises UserError for a file that is not there, cannot be read, or has no rows.
    """
    if place.is_dir():
        found = _hugging_face(place, split)
    elif not place.is_file():
        raise UserError(nothing_at(place, "give a table of annotations"))
    else:
        try:
            found = _parquet(place) if place.suffix == ".parquet" else _of_list(_rows(place))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{place} is not a readable {place.suffix[1:]} table: {error}") from error
    if not len(found):
        raise UserError(f"{place} has no rows")
    return found


def _rows(place: Path) -> list[dict[str, Any]]:
    text = place.read_text(encoding="utf-8")
    if place.suffix in (".csv", ".tsv"):
        return list(csv.DictReader(io.StringIO(text), delimiter="\t" if place.suffix == ".tsv" else ","))
    if place.suffix in (".jsonl", ".jsonlines"):
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    if place.suffix != ".json":
        raise ValueError(f"the suffix should be one of {', '.join(SUFFIXES)}")
    content = json.loads(text)
    rows = list(content.values()) if isinstance(content, dict) else content
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("it should be a list of objects")
    return rows


def _of_list(rows: list[dict[str, Any]]) -> Records:
    return Records(len(rows), rows.__getitem__, list(rows[0]) if rows else [], None)


def _parquet(place: Path) -> Records:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(place)
    # Row by row: pictures may lie in the table itself, and need not all be Python objects at once.
    return Records(
        table.num_rows, lambda index: table.slice(index, 1).to_pylist()[0], table.column_names, None
    )


def _hugging_face(folder: Path, split: str) -> Records:
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError as error:
        raise UserError(f"{folder} needs `pip install datasets`") from error
    if not is_hugging_face(folder):
        raise UserError(f"{folder} is no folder of Hugging Face's datasets (save_to_disk writes one)")
    data: Any = load_from_disk(str(folder))
    if isinstance(data, DatasetDict):
        if split not in data:
            raise UserError(f"{folder} has no split {split!r}; it has {', '.join(data)}")
        data = data[split]
    label = next((name for name in LABEL_COLUMNS if name in data.column_names), None)
    return Records(
        len(data), data.__getitem__, data.column_names, getattr(data.features.get(label), "names", None)
    )


def find_column(records: Records, known: Sequence[str], what: str, place: Path) -> str:
    """The first of the known names that is a column. Raises UserError with the columns that there are."""
    found = next((name for name in known if name in records.columns), None)
    if found is None:
        raise UserError(
            f"{place} has no column for the {what} (looked for {', '.join(known)}); it has {', '.join(records.columns)}"
        )
    return found


def read_image(value: Any, folder: Path) -> Image.Image:
    """The picture in a cell: a path below ``folder``, bytes, Hugging Face's {bytes, path}, or a PIL image."""
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Image.open(io.BytesIO(value)).convert("RGB")
    return Image.open(folder / str(value)).convert("RGB")


def image_name(value: Any, index: int) -> str:
    """What identifies the picture in a cell: its path, or the number of its row."""
    if isinstance(value, dict):
        value = value.get("path")
    return str(value) if isinstance(value, str) and value else f"{index:07d}"
