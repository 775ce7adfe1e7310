"""Registry of the layouts that are read: one class per layout, in the order in which they are tried.

A new layout is a subclass of :class:`filip.sets.layout.Layout` and a line here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from filip.errors import UserError
from filip.rgb import not_read
from filip.sets.annotations import Coco, Karpathy
from filip.sets.arrow import ArrowImages
from filip.sets.layout import Layout, NotUnderstoodError, Reading, Row, walk
from filip.sets.parquet import ParquetImages
from filip.sets.table import Table
from filip.sets.tars import Tars
from filip.sets.text_beside import TextBeside

LAYOUTS: dict[str, Layout] = {
    "karpathy": Karpathy(),
    "coco": Coco(),
    "tars": Tars(),
    "arrow": ArrowImages(),
    "parquet": ParquetImages(),
    "table": Table(),
    "text_beside": TextBeside(),
}


def recognise(reading: Reading) -> tuple[str, list[Path]]:
    """Return the name of the layout of a set, and its parts. Raises UserError if no layout fits."""
    if reading.layout != "auto" and reading.layout not in LAYOUTS:
        raise UserError(f"layout is {reading.layout!r}, but must be auto or one of {', '.join(LAYOUTS)}")
    for name in LAYOUTS if reading.layout == "auto" else [reading.layout]:
        if parts := LAYOUTS[name].parts(reading):
            return name, parts
    known = "; ".join(layout.about for layout in LAYOUTS.values())
    files = walk(reading.place, reading.inside_only, without=reading.without) if reading.place.is_dir() else ()
    unread = not_read(path for path, _ in files)
    there = f" There are {unread}." if unread else ""
    raise NotUnderstoodError(f"{reading.place} has no captions that are understood.{there} Known are: {known}")


def rows_of(layout: str, part: Path | None, reading: Reading) -> Iterator[Row]:
    """Yield the rows of one part of a set; without a part, the rows of files that belong to none."""
    if part is not None:
        yield from LAYOUTS[layout].find(part, reading)
    elif reading.place.is_dir():
        yield from LAYOUTS[layout].rest(reading, LAYOUTS[layout].parts(reading))
