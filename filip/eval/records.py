"""Tables of images for benchmark cards, by number: JSON, JSON lines, CSV, TSV, Parquet, or a Hugging Face data set."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from filip.errors import UserError
from filip.files import nothing_at
from filip.progress import say
from filip.rgb import FORMATS
from filip.sets.columns import LABEL_COLUMNS
from filip.sets.tables import Broken, read_table
from filip.sets.text import read_file


class Records:
    """The rows of a source by number, each a dict, in the order of the file.

    names: those of the classes, where the source numbers its labels and says what the numbers mean.
    """

    def __init__(
        self, count: int, row: Callable[[int], dict[str, Any]], columns: Sequence[str], names: list[str] | None
    ):
        self.count, self._row, self.columns, self.names = count, row, list(columns), names

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._row(index)

    def column(self, name: str) -> list[Any]:
        """Return all values of a column. Raises KeyError if a row lacks it."""
        return [self[index][name] for index in range(self.count)]


def read_records(place: Path, split: str = "test") -> Records:
    """Read the rows of a file (by its suffix) or of a folder of Hugging Face's ``datasets``.

    split: the one to read of a folder with several. A JSON file is a list of objects, or an object of
    objects (SugarCrepe's form).
    Raises UserError for a file that is not there, cannot be read, or has no rows.
    """
    if place.is_dir():
        found = _hugging_face(place, split)
    elif not place.is_file():
        raise UserError(nothing_at(place, "give a table of annotations"))
    else:
        found = _parquet(place) if place.suffix == ".parquet" else _of_table(place)
    if not len(found):
        raise UserError(f"{place} has no rows")
    return found


def _of_table(place: Path) -> Records:
    table = read_table(place)
    rows, broken = [], []
    for row in table.rows:
        if isinstance(row, Broken):
            broken.append(row)
        else:
            rows.append(row[1])
    if broken:
        say(f"{place}: left out {len(broken):,} lines that cannot be read, such as {broken[0].number}: {broken[0].why}")
    return Records(len(rows), rows.__getitem__, table.names, None)


def _parquet(place: Path) -> Records:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(place)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{place} is not a readable parquet table: {error}") from error
    # Row by row: pictures may lie in the table itself, and need not all be Python objects at once.
    return Records(table.num_rows, lambda index: table.slice(index, 1).to_pylist()[0], table.column_names, None)


def _hugging_face(folder: Path, split: str) -> Records:
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError as error:
        raise UserError(f"{folder} needs `pip install datasets`") from error
    if not any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        raise UserError(f"{folder} is not a folder of Hugging Face's datasets (save_to_disk writes one)")
    data: Any = load_from_disk(str(folder))
    if isinstance(data, DatasetDict):
        if split not in data:
            raise UserError(f"{folder} has no split {split!r}; it has {', '.join(data)}")
        data = data[split]
    label = next((name for name in LABEL_COLUMNS if name in data.column_names), None)
    return Records(len(data), data.__getitem__, data.column_names, getattr(data.features.get(label), "names", None))


def find_column(records: Records, known: Sequence[str], what: str, place: Path) -> str:
    """Return the first of the known names that is a column. Raises UserError with the columns that there are."""
    found = next((name for name in known if name in records.columns), None)
    if found is None:
        raise UserError(
            f"{place} has no column for the {what} (looked for {', '.join(known)}); it has {', '.join(records.columns)}"
        )
    return found


def read_image(value: Any, folder: Path) -> Image.Image:
    """Open the picture in a cell, as it is stored: a path below ``folder``, bytes, Hugging Face's {bytes, path}, or
    a PIL image.
    """
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, bytes):
        value = read_file(folder / str(value))
    return Image.open(io.BytesIO(value), formats=FORMATS)


def image_name(value: Any, index: int) -> str:
    """Return what identifies the picture in a cell: its path, or the number of its row."""
    if isinstance(value, dict):
        value = value.get("path")
    return str(value) if isinstance(value, str) and value else f"{index:07d}"
