"""Read files with the images themselves in their rows, bytes or {bytes, path}: Parquet of Hugging Face data sets, and
the Arrow files that the `datasets` library saves (``save_to_disk``)."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from filip.common.errors import UserError, first_line
from filip.sets.columns import caption_columns, captions_of, group_of, split_columns, split_in
from filip.sets.layout import Layout, Reading, Row, files_in, inside, split_of
from filip.sets.tables import Broken, Record, batch_rows, parquet_rows
from filip.sets.text import read_file

if TYPE_CHECKING:
    import pyarrow as pa


class ParquetImages(Layout):
    """Layout of Parquet files that hold images; ``position`` is the row, a row group is read once for its images."""

    about = "Parquet with the images' bytes in a column (Hugging Face)"
    in_order = True
    suffixes = (".parquet",)

    def parts(self, reading: Reading) -> list[Path]:
        files = [reading.place] if reading.place.suffix == ".parquet" and reading.place.is_file() else []
        if reading.place.is_dir():
            files = files_in(replace(reading, inside_only=False), self.suffixes)  # the hub's cache has links
        if not any(image_bytes_column(path) for path in files):
            return []
        return files

    def splits(self, part: Path, reading: Reading) -> Counter[str | None]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(part) as file:
                columns = split_columns(tuple(file.schema_arrow.names))
                return splits_in(file.read(columns), file.metadata.num_rows, split_of(part, reading))
        except (pa.ArrowException, OSError):  # find reports it
            return super().splits(part, reading)

    def columns(self, part: Path, reading: Reading) -> list[str]:
        import pyarrow.parquet as pq

        return list(pq.read_schema(part).names)

    def find(self, part: Path, reading: Reading) -> Iterator[Row]:
        import pyarrow as pa

        image = image_bytes_column(part)
        if image is None:
            problem = "unreadable: it is not Parquet, is not whole, or has no column of images"
            yield Row(reading.name_of(part), [], os.path.abspath(part), -1, problem=problem)
            return
        try:
            columns_left = [name for name in self.columns(part, reading) if name != image]
            columns = caption_columns(columns_left, reading, part)
            more = [*([reading.group_column] if reading.group_column else []), *reading.only]
            needed = dict.fromkeys([*columns, *split_columns(tuple(columns_left)), *more])
            rows = parquet_rows(part, [name for name in needed if name in columns_left])
            yield from found_in(rows, columns, part, reading, split_of(part, reading))
        except pa.ArrowException as error:
            raise UserError(f"{part} cannot be read: {first_line(error)}") from error

    def read(self, file: str, position: int, size: int) -> bytes:
        starts, image = _row_groups(file)
        group = int(np.searchsorted(starts, position, side="right")) - 1
        return image_bytes(_row_group(file, group, image), position - int(starts[group]), Path(file).parent)


def found_in(
    rows: Iterable[tuple[int, Record] | Broken], columns: list[str], part: Path, reading: Reading, split: str | None
) -> Iterator[Row]:
    """Yield the rows of ``part``, by their numbers; ``columns`` have the captions. split: of rows that name none."""
    file, name = os.path.abspath(part), reading.name_of(part)
    for row in rows:
        number = row.number if isinstance(row, Broken) else row[0]
        place = f"{name}#{number - 1}"
        if isinstance(row, Broken):
            yield Row(place, [], file, number - 1, problem=f"{row.reason}: {row.why}")
            continue
        record = row[1]
        matches = all(str(record.get(column)) == value for column, value in reading.only.items())
        yield Row(
            place,
            captions_of(record, columns) if matches else [],
            file,
            number - 1,
            group=group_of(record, reading, part),
            problem=None if matches else "not_wanted: `only` in the card",
            split=split_in(record) or split,
        )


def splits_in(columns: pa.Table, rows: int, split: str | None) -> Counter[str | None]:
    """Return the number of rows of each split, by the columns that may hold it. split: of rows that name none."""
    if not columns.num_columns:
        return Counter({split: rows})
    counts: Counter[str | None] = Counter()
    for record in columns.group_by(columns.column_names).aggregate([([], "count_all")]).to_pylist():
        counts[split_in(record) or split] += record["count_all"]
    return counts


def image_bytes_column(path: Path) -> str | None:
    """Return the column of a Parquet file that holds images as bytes; None if it has none, or is not Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return bytes_column(pq.read_schema(path))
    except (pa.ArrowException, OSError):
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


class ArrowImages(Layout):
    """Layout of Arrow files, mapped into memory, not read; ``position`` is the number of the row."""

    about = "a folder that the `datasets` library saved (dataset_info.json and .arrow files)"
    in_order = True
    suffixes = (".arrow",)
    companions = re.compile(r"^(dataset_info|dataset_dict|dataset_infos|state)\.json$|^cache-.*\.arrow$")

    def parts(self, reading: Reading) -> list[Path]:
        if reading.place.is_file():
            return [reading.place] if reading.place.suffix == ".arrow" else []
        return [
            path
            for path in files_in(replace(reading, inside_only=False), self.suffixes)
            if not path.name.startswith("cache-")
        ]

    def splits(self, part: Path, reading: Reading) -> Counter[str | None]:
        try:
            table = _table(str(part))
        except UserError:  # find reports it
            return super().splits(part, reading)
        return splits_in(table.select(split_columns(tuple(table.column_names))), len(table), _saved_as(part, reading))

    def columns(self, part: Path, reading: Reading) -> list[str]:
        return list(_table(str(part)).column_names)

    def find(self, part: Path, reading: Reading) -> Iterator[Row]:
        try:
            table = _table(str(part))
            image = _column(table, part)
        except UserError as error:
            yield Row(reading.name_of(part), [], os.path.abspath(part), -1, problem=f"unreadable: {error}")
            return
        columns_left = [name for name in table.column_names if name != image]
        columns = caption_columns(columns_left, reading, part)
        records = _numbered(table.select(columns_left))
        yield from found_in(records, columns, part, reading, _saved_as(part, reading))

    def read(self, file: str, position: int, size: int) -> bytes:
        table = _table(file)
        return image_bytes(table[_column(table, Path(file))], position, Path(file).parent)


def _saved_as(part: Path, reading: Reading) -> str | None:
    """Return the split of a file: a dictionary of data sets has a folder for each."""
    if (reading.place / "dataset_dict.json").is_file():
        return part.relative_to(reading.place).parts[0]
    return split_of(part, reading)


def _numbered(table: pa.Table) -> Iterator[tuple[int, Record]]:
    number = 0
    for batch in table.to_batches(1000):
        for record in batch_rows(batch):
            number += 1
            yield number, record


def _column(table: pa.Table, part: Path) -> str:
    column = bytes_column(table.schema)
    if column is None:
        raise UserError(f"{part} has no column of images (bytes); its columns are {', '.join(table.column_names)}")
    return column


@lru_cache(maxsize=8)
def _table(file: str) -> pa.Table:
    """Map a file into memory: `datasets` writes the streaming format, other programs the file format."""
    import pyarrow as pa

    source = pa.memory_map(file)
    try:
        return pa.ipc.open_stream(source).read_all()
    except (pa.ArrowInvalid, OSError):
        source.seek(0)
    try:
        return pa.ipc.open_file(source).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} is not an Arrow file: {first_line(error)}") from error
