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
from filip.common.text_files import decoded, read_file
from filip.images.rgb import not_read
from filip.sets.layout import (
    ALL,
    FEW,
    OUTSIDE,
    Layout,
    NotUnderstoodError,
    Reading,
    Row,
    files_in,
    is_picture,
    last_part,
    other_split,
    pictures_below,
    split_in_name,
    walk,
)
from filip.sets.parquet import ParquetImages
from filip.sets.same_name import Tars, TextBeside
from filip.sets.table import Coco, Karpathy, Table

LAYOUTS: dict[str, Layout] = {
    "karpathy": Karpathy(),
    "coco": Coco(),
    "tars": Tars(),
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
            named = {} if LAYOUTS[name].in_order or reading.split == ALL else _names_in_lists(reading)
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
    advice = "; write the .arrow files as Parquet, by `to_parquet` of `datasets`" if suffixes[".arrow"] else ""
    said = [f"{len(pictures):,} pictures"]
    said += [f"{count:,} {suffix or 'without suffix'}" for suffix, count in suffixes.most_common(5)]
    return f" There are {', '.join(said)}{f'; {unread}' if unread else ''}{advice}."


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


def _names_in_lists(reading: Reading) -> dict[str, str]:
    """Return the splits in the lists of names beside pictures, such as ``Flickr_8k.testImages.txt``, by name.

    A list has a split in its name, and at least half of its lines name pictures, with a suffix or without. Names in
    two lists count in none: other pictures of that name may be in other folders.
    """
    if not reading.place.is_dir():
        return {}
    lists = {path: split for path in files_in(reading, (".txt", ".csv", ".lst")) if (split := split_in_name(path.stem))}
    count = Counter((path.parent, path.suffix) for path in lists)
    pictures: set[str] = set()
    splits: dict[str, set[str]] = {}
    for path, split in lists.items():
        if count[path.parent, path.suffix] > FEW:
            continue
        pictures = pictures or {name.lower() for file in pictures_below(reading) for name in (file.name, file.stem)}
        lines = (decoded(read_file(path)) or "").split("\n")
        names = [last_part(line.strip(' \r\t"')) for line in lines if line.strip()]
        known = [name for name in names if name in pictures]
        if 0 < len(names) <= 2 * len(known):
            for name in known:
                splits.setdefault(name, set()).add(split)
    return {name: min(found) for name, found in splits.items() if len(found) == 1}
