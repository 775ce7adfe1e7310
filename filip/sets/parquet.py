"""Read Parquet files with the images themselves in their rows, bytes or {bytes, path}, as Hugging Face's data sets."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from filip.common.errors import UserError, first_line
from filip.common.text_files import read_file
from filip.sets.columns import caption_columns, captions_of, group_of, split_columns, split_in
from filip.sets.layout import Layout, Reading, Row, files_in, inside, split_of
from filip.sets.tables import Broken, parquet_rows

if TYPE_CHECKING:
    import pyarrow as pa


class ParquetImages(Layout):
    """Layout of Parquet files that hold an image in each row; ``position`` is the row's number.

    A row group is read once for its images.
    """

    about = "Parquet with the images' bytes in a column (Hugging Face)"
    suffixes = (".parquet",)
    in_order = True

    def parts(self, reading: Reading) -> list[Path]:
        if reading.place.is_file():
            files = [reading.place] if reading.place.suffix in self.suffixes else []
        else:
            files = files_in(replace(reading, inside_only=False), self.suffixes)  # the hub's cache has links
        return files if any(image_bytes_column(path) for path in files) else []

    def splits(self, part: Path, reading: Reading) -> Counter[str | None]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            columns = split_columns(tuple(_schema(part).names))
            with pq.ParquetFile(part) as file:
                table = file.read(columns)
        except (UserError, pa.ArrowException, OSError):  # find reports it
            return super().splits(part, reading)
        of_part = split_of(part, reading)
        if not columns:
            return Counter({of_part: table.num_rows})
        counts: Counter[str | None] = Counter()
        for record in table.group_by(columns).aggregate([([], "count_all")]).to_pylist():
            counts[split_in(record) or of_part] += record["count_all"]
        return counts

    def columns(self, part: Path, reading: Reading) -> list[str]:
        return list(_schema(part).names)

    def find(self, part: Path, reading: Reading) -> Iterator[Row]:
        file, name, split = os.path.abspath(part), reading.name_of(part), split_of(part, reading)
        try:
            schema = _schema(part)
            image = bytes_column(schema)
            if image is None:
                raise UserError(f"{part} has no column of images (bytes); its columns are {', '.join(schema.names)}")
        except UserError as error:
            yield Row(name, [], file, -1, problem=f"unreadable: {error}")
            return
        left = [column for column in self.columns(part, reading) if column != image]
        captions = caption_columns(left, reading, part)
        more = [*([reading.group_column] if reading.group_column else []), *reading.only]
        needed = dict.fromkeys([*captions, *split_columns(tuple(left)), *more])
        for row in parquet_rows(part, [column for column in needed if column in left]):
            if isinstance(row, Broken):
                place = f"{name}#{row.number - 1}"
                yield Row(place, [], file, row.number - 1, problem=f"{row.reason}: {row.why}")
                continue
            number, record = row
            matches = all(str(record.get(column)) == value for column, value in reading.only.items())
            yield Row(
                f"{name}#{number - 1}",
                captions_of(record, captions) if matches else [],
                file,
                number - 1,
                group=group_of(record, reading, part),
                problem=None if matches else "not_wanted: `only` in the card",
                split=split_in(record) or split,
            )

    def read(self, file: str, position: int, size: int) -> bytes:
        starts, image = _row_groups(file)
        group = int(np.searchsorted(starts, position, side="right")) - 1
        return image_bytes(_row_group(file, group, image), position - int(starts[group]), Path(file).parent)


def _schema(part: Path) -> pa.Schema:
    """Return the names and types of a file's columns. Raises UserError for a file of another kind."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(part)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"it is not Parquet, or is not whole ({first_line(error)})") from error


def image_bytes_column(path: Path) -> str | None:
    """Return the column of a Parquet file that holds images as bytes; None if it has none, or is not Parquet."""
    try:
        return bytes_column(_schema(path))
    except UserError:
        return None


def bytes_column(schema: pa.Schema) -> str | None:
    """Return the first column of binary values, or of {bytes, path}, as the `datasets` library stores images."""
    import pyarrow as pa

    for field in schema:
        kind = field.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return str(field.name)
    return None


def image_bytes(column: pa.Array | pa.ChunkedArray, row: int, folder: Path) -> bytes:
    """Return the bytes of one row of such a column, or of the file below ``folder`` that it names.

    Raises FileNotFoundError if it has neither.
    """
    value: Any = column[row].as_py()
    path = None
    if isinstance(value, dict):
        value, path = value["bytes"], value.get("path")
    if value is not None:
        return bytes(value)
    if path:
        root = os.path.realpath(folder)
        file, outside = inside(root, os.path.realpath(os.path.join(root, path)))
        if outside is None:
            return read_file(file)
    raise FileNotFoundError(f"the row holds no bytes{f', only the path {path}' if path else ''}")


@lru_cache(maxsize=64)
def _row_groups(file: str) -> tuple[np.ndarray, str]:
    """Return the first row of each row group, and the name of the images' column."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(file)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    image = image_bytes_column(Path(file))
    if image is None:
        raise FileNotFoundError(f"{file} has no column of images any more")
    return np.cumsum([0, *sizes])[:-1], image


@lru_cache(maxsize=1)
def _row_group(file: str, group: int, column: str) -> pa.ChunkedArray:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        return opened.read_row_group(group, columns=[column])[column]
