"""Read a folder that the `datasets` library saved to disk (``save_to_disk``), or its Arrow files alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from filip.errors import UserError, first_line
from filip.sets.columns import caption_columns
from filip.sets.layout import Layout, Reading, Row, files_in
from filip.sets.parquet import bytes_column, found_in, image_bytes
from filip.sets.tables import Record, batch_rows

if TYPE_CHECKING:
    import pyarrow as pa


class ArrowImages(Layout):
    """Layout of Arrow files, mapped into memory, not read; ``position`` is the number of the row."""

    about = "a folder that the `datasets` library saved (dataset_info.json and .arrow files)"
    in_order = True
    suffixes = (".arrow",)
    companions = re.compile(r"^(dataset_info|dataset_dict|dataset_infos|state)\.json$|^cache-.*\.arrow$")

    def parts(self, reading: Reading) -> list[Path]:
        if reading.place.is_file():
            return [reading.place] if reading.place.suffix == ".arrow" else []
        return [path for path in files_in(reading, self.suffixes) if not path.name.startswith("cache-")]

    def splits(self, part: Path, reading: Reading) -> set[str | None]:
        """Return the split of a file: a dictionary of data sets has a folder for each."""
        in_dictionary = (reading.place / "dataset_dict.json").is_file()
        return {part.relative_to(reading.place).parts[0] if in_dictionary else None}

    def columns(self, part: Path, reading: Reading) -> list[str]:
        return list(_table(str(part)).column_names)

    def find(self, part: Path, reading: Reading) -> Iterator[Row]:
        try:
            table = _table(str(part))
            image = _column(table, part)
        except UserError as error:
            yield Row(reading.name_of(part), [], os.path.abspath(part), -1, problem=f"unreadable: {error}")
            return
        others = [name for name in table.column_names if name != image]
        columns = caption_columns(others, reading, part)
        yield from found_in(_numbered(table.select(others)), columns, part, reading)

    def read(self, file: str, position: int, size: int) -> bytes:
        table = _table(file)
        return image_bytes(table[_column(table, Path(file))], position, Path(file).parent)


def _numbered(table: pa.Table) -> Iterator[tuple[int, Record]]:
    number = 0
    for batch in table.to_batches(1000):
        for record in batch_rows(batch):
            number += 1
            yield number, record


def _column(table: pa.Table, part: Path) -> str:
    found = bytes_column(table.schema)
    if found is None:
        raise UserError(f"{part} has no column of images (bytes); its columns are {', '.join(table.column_names)}")
    return found


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
