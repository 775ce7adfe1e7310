"""Registry of the layouts that are read: one class per layout, in the order in which they are tried.

A new layout is a subclass of :class:`filip.sets.layout.Layout` and a line here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from filip.errors import UserError
from filip.rgb import not_read
from filip.sets.annotations import Coco, Karpathy
from filip.sets.layout import OUTSIDE, Layout, NotUnderstoodError, Reading, Row, is_picture, other_split, walk
from filip.sets.parquet import ArrowImages, ParquetImages
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


def recognise(reading: Reading) -> tuple[str, list[Path], Reading]:
    """Return the name of the layout of a set, its parts, and ``reading`` with the splits that are taken.

    Raises UserError if no layout fits, or the set has other splits than those asked for.
    """
    if reading.layout != "auto" and reading.layout not in LAYOUTS:
        raise UserError(f"layout is {reading.layout!r}, but must be auto or one of {', '.join(LAYOUTS)}")
    for name in LAYOUTS if reading.layout == "auto" else [reading.layout]:
        if parts := LAYOUTS[name].parts(reading):
            reading = replace(reading, several=len(parts) > 1)
            splits = {split for part in parts for split in LAYOUTS[name].splits(part, reading) if split is not None}
            reading = replace(reading, taken=tuple(reading.splits_taken(sorted(splits), reading.place)))
            return name, wanted_parts(name, parts, reading), reading
    layouts = "; ".join(layout.about for layout in LAYOUTS.values())
    raise NotUnderstoodError(
        f"{reading.place} has no captions that are understood.{_there(reading)} Known are: {layouts}"
    )


def _there(reading: Reading) -> str:
    """Describe a folder in which no layout was recognised."""
    if not reading.place.is_dir():
        return ""
    files = [path for path, _ in walk(reading.place, reading.inside_only, without=reading.without)]
    pictures = [path for path in files if is_picture(path)]
    suffixes = Counter(path.suffix.lower() for path in files if not is_picture(path))
    unread = not_read(files)
    said = [
        f"{len(pictures):,} pictures",
        *(f"{count:,} {suffix or 'without suffix'}" for suffix, count in suffixes.most_common(5)),
    ]
    return f" There are {', '.join(said)}{f'; {unread}' if unread else ''}."


def rows_of(layout: str, part: Path | None, reading: Reading) -> Iterator[Row]:
    """Yield the rows of one part of a set; without a part, the rows of files that belong to none.

    Rows of splits that are not taken have that for a problem, in every layout.
    """
    rows: Iterable[Row] = ()
    if part is not None:
        rows = LAYOUTS[layout].find(part, reading)
    elif reading.place.is_dir():
        rows = LAYOUTS[layout].rest(reading, wanted_parts(layout, LAYOUTS[layout].parts(reading), reading))
    roots = [os.path.realpath(place) for place in (reading.place, reading.image_root) if place is not None]
    roots = [root if os.path.isdir(root) else os.path.dirname(root) for root in roots]
    checked = reading.inside_only and not LAYOUTS[layout].in_order
    for row in rows:
        problem = None if _is_taken(row.split, reading) else other_split(row.split)
        if checked and row.problem is None and problem is None:
            file = os.path.realpath(row.file)
            inside = any(os.path.commonpath([file, root]) == root for root in roots)
            problem = None if inside or not os.path.exists(file) else OUTSIDE
        yield row if problem is None else replace(row, captions=(), problem=problem)


def wanted_parts(layout: str, parts: list[Path], reading: Reading) -> list[Path]:
    """Return the parts that have images of the splits that are taken."""
    splits = {part: LAYOUTS[layout].splits(part, reading) or {None} for part in parts}
    return [part for part in parts if any(_is_taken(split, reading) for split in splits[part])]


def _is_taken(split: str | None, reading: Reading) -> bool:
    return split is None or reading.taken is None or split in reading.taken
