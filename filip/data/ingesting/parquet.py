"""Parquet whose rows hold the images themselves, as Hugging Face datasets have it: bytes, or {bytes, path}."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from filip.data.cards import SourceCard
from filip.data.ingesting.layout import Found, Layout, caption_columns, captions_of, files_in, group_of
from filip.errors import UserError


class ParquetImages(Layout):
    """``position`` is the number of the row; a row group is read once for all its images."""

    about = "Parquet with the images' bytes in a column (Hugging Face)"
    in_order = True

    def parts(self, images: Path, card: SourceCard) -> list[Path]:
        found = [images] if images.suffix == ".parquet" and images.is_file() else []
        if images.is_dir():
            found = files_in(images, [".parquet"])
        return found if found and image_bytes_column(found[0]) else []

    def find(self, part: Path, card: SourceCard, scratch: Path) -> Iterator[Found]:
        with pq.ParquetFile(part) as file:
            image = _column(part)
            others = [name for name in file.schema_arrow.names if name != image]
            columns = caption_columns(others, card, part)
            wanted = list(dict.fromkeys([*columns, *([card.group_column] if card.group_column else [])]))
            batches = file.iter_batches(1000, columns=[name for name in wanted if name in others])
            yield from found_in(batches, columns, card, part)

    def read(self, file: str, position: int, size: int) -> bytes:
        starts, image = _row_groups(file)
        group = int(np.searchsorted(starts, position, side="right")) - 1
        return image_bytes(_row_group(file, group, image), position - int(starts[group]))


def found_in(
    batches: Iterable[pa.RecordBatch], columns: list[str], card: SourceCard, part: Path
) -> Iterator[Found]:
    """The rows of ``part``, by their numbers; ``columns`` are those of the captions."""
    records = (record for batch in batches for record in batch.to_pylist())
    for row, record in enumerate(records):
        captions, group = captions_of(record, columns), group_of(record, card, part)
        yield Found(f"{part.name}#{row}", captions, str(part.absolute()), row, group=group)


def image_bytes_column(path: Path) -> str | None:
    """The column of a Parquet file that holds images as bytes; None if there is none."""
    try:
        return bytes_column(pq.read_schema(path))
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not Parquet: {error}") from error


def bytes_column(schema: pa.Schema) -> str | None:
    """The first column of binary values, or of {bytes, path}, as the `datasets` library stores images."""
    for field in schema:
        kind = field.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return str(field.name)
    return None


def image_bytes(column: pa.Array | pa.ChunkedArray, row: int) -> bytes:
    """The bytes of one row of such a column. Raises FileNotFoundError where it has none."""
    value: Any = column[row].as_py()
    path = None
    if isinstance(value, dict):
        value, path = value["bytes"], value.get("path")
    if value is None:
        raise FileNotFoundError(f"the row holds no bytes{f', only the path {path}' if path else ''}")
    return bytes(value)


def _column(path: Path) -> str:
    found = image_bytes_column(path)
    if found is None:
        raise UserError(f"{path} has no column of images, unlike the other files beside it")
    return found


@lru_cache(maxsize=64)
def _row_groups(file: str) -> tuple[np.ndarray, str]:
    """The first row of each row group, and the name of the images' column."""
    metadata = pq.read_metadata(file)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return np.cumsum([0, *sizes])[:-1], _column(Path(file))


@lru_cache(maxsize=1)
def _row_group(file: str, group: int, column: str) -> pa.ChunkedArray:
    with pq.ParquetFile(file) as opened:
        return opened.read_row_group(group, columns=[column])[column]
