"""A folder that the `datasets` library saved to disk (``save_to_disk``), or its Arrow files alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from filip.data.cards import SourceCard
from filip.data.ingesting.layout import Found, Layout, caption_columns, files_in
from filip.data.ingesting.parquet import bytes_column, found_in, image_bytes
from filip.errors import UserError


class ArrowImages(Layout):
    """``position`` is the number of the row; the files are mapped into memory, not read."""

    about = "a folder that the `datasets` library saved (dataset_info.json and .arrow files)"
    in_order = True

    def parts(self, images: Path, card: SourceCard) -> list[Path]:
        if images.is_file():
            return [images] if images.suffix == ".arrow" else []
        found = files_in(images, [".arrow"])
        if card.split:  # a dictionary of data sets: a folder for each split
            wanted = card.split.split("+")
            found = [path for path in found if path.relative_to(images).parts[0] in wanted]
        return [path for path in found if not path.name.startswith("cache-")]

    def find(self, part: Path, card: SourceCard, scratch: Path) -> Iterator[Found]:
        table = _table(str(part))
        image = _column(table, part)
        others = [name for name in table.column_names if name != image]
        columns = caption_columns(others, card, part)
        yield from found_in(table.select(others).to_batches(1000), columns, card, part)

    def read(self, file: str, position: int, size: int) -> bytes:
        table = _table(file)
        return image_bytes(table[_column(table, Path(file))], position)


def _column(table: pa.Table, part: Path) -> str:
    found = bytes_column(table.schema)
    if found is None:
        raise UserError(
            f"{part} has no column of images (bytes); its columns are {', '.join(table.column_names)}"
        )
    return found


@lru_cache(maxsize=8)
def _table(file: str) -> pa.Table:
    """`datasets` writes the streaming format; other programs the file format."""
    source = pa.memory_map(file)
    try:
        return pa.ipc.open_stream(source).read_all()
    except (pa.ArrowInvalid, OSError):
        source.seek(0)
    try:
        return pa.ipc.open_file(source).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} is not an Arrow file: {error}") from error
