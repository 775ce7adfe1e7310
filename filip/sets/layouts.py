"""Registry of the layouts that are read: one class per layout, in the order in which they are tried.

A new layout is a subclass of :class:`filip.sets.layout.Layout` and a line here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from filip.common.errors import UserError
from filip.images.rgb import not_read
from filip.sets.layout import ALL, OUTSIDE, Layout, NotUnderstoodError, Reading, Row, is_picture, other_split, walk
from filip.sets.parquet import ArrowImages, ParquetImages
from filip.sets.table import Coco, Karpathy, Table, names_in_lists
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
            named = {} if LAYOUTS[name].in_order or reading.split == ALL else names_in_lists(reading)
            reading = replace(reading, named=named)
            splits = [LAYOUTS[name].splits(part, reading) for part in parts]
            reading = replace(reading, there=dict(sum(splits, Counter[str | None]())))
            reading = replace(reading, taken=reading.splits_taken())
            return name, _wanted(parts, splits, reading), reading
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
        parts = LAYOUTS[layout].parts(reading)
        splits = [LAYOUTS[layout].splits(part, reading) for part in parts]
        rows = LAYOUTS[layout].rest(reading, _wanted(parts, splits, reading))
    roots = [os.path.realpath(place) for place in (reading.place, reading.image_root) if place is not None]
    roots = [root if os.path.isdir(root) else os.path.dirname(root) for root in roots]
    checked = reading.inside_only and not LAYOUTS[layout].in_order
    for row in rows:
        unused = row.split is None and not row.captions  # its own reason says more
        problem = None if unused or _is_taken(row.split, reading) else other_split(row.split)
        if checked and row.problem is None and problem is None:
            file = os.path.realpath(row.file)
            inside = any(os.path.commonpath([file, root]) == root for root in roots)
            problem = None if inside or not os.path.exists(file) else OUTSIDE
        yield row if problem is None else replace(row, captions=(), problem=problem)


def _wanted(parts: Sequence[Path], splits: Sequence[Collection[str | None]], reading: Reading) -> list[Path]:
    """Return the parts that have images of the splits that are taken. splits: of each part."""
    pairs = zip(parts, splits, strict=True)
    return [part for part, there in pairs if any(_is_taken(split, reading) for split in there or {None})]


def _is_taken(split: str | None, reading: Reading) -> bool:
    return reading.taken is None or split in reading.taken
