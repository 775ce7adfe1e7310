"""Find the lists of a set, one for each split or one for all, and the pictures that they name.

:mod:`filip.sets.table` and :mod:`filip.sets.annotations` read the lists.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from filip.common.errors import UserError
from filip.sets.layout import (
    Layout,
    Reading,
    Row,
    files_in,
    inside,
    is_picture,
    split_in_name,
    split_of,
    split_of_folder,
    split_of_picture,
    unused,
    walk,
)
from filip.sets.text import decoded, read_file

SAMPLE = 50  # names of a list by which its pictures are looked for
FEW = 10  # with more files of one kind, a folder has one record for each picture, and no lists
# if a folder has several lists, the one with such a name counts
USUAL = ("metadata", "captions", "annotations", "labels")

Finder = Callable[[str], tuple[str, str | None]]


def lists_in(reading: Reading, suffixes: Collection[str], fits: Callable[[Path], bool]) -> list[Path]:
    """Return the lists of a folder, or else those in the folders below it."""
    for depth in (1, 2):
        there = files_in(reading, suffixes, depth)
        count = Counter((path.parent, path.suffix) for path in there)
        if lists := [path for path in there if count[path.parent, path.suffix] <= FEW and fits(path)]:
            return lists
    return []


def are_parts(lists: Collection[Path], reading: Reading) -> bool:
    """Return whether several lists are parts of one set: of different splits, or in different folders."""
    splits = [split_of(path, reading) for path in lists]
    folders = {path.parent for path in lists}
    return (None not in splits and len(set(splits)) == len(lists)) or len(folders) == len(lists) > 1


def finder(part: Path, reading: Reading, names: Iterable[str]) -> Finder:
    """Return the function that gives the path of a picture that a list names, and its fault.

    names: some of the list. They are relative to the list's folder, or else to the set's. If none of these pictures is
    there, they are looked for by the last part of their names, wherever in the set they are; of several with one name
    the one in a folder of the list's split is taken, or else none.
    """
    root = reading.root_of(part)
    names = list(names)
    if reading.image_root or not reading.place.is_dir():
        return partial(inside, root)
    for base in (root, os.path.abspath(reading.place)):
        if any(path and os.path.lexists(path) for path, _ in (inside(base, name) for name in names)):
            return partial(inside, base)
    pictures, split = pictures_below(reading), split_of(part, reading)
    places = by_name(path for path in pictures if split and split_of_folder(path, reading.place) == split)
    places = {**by_name(pictures), **places}
    if not any(places.get(last_part(name)) for name in names):
        return partial(inside, root)

    def find(name: str) -> tuple[str, str | None]:
        path = places.get(last_part(name))
        return (path, None) if path else inside(root, name.replace("\\", "/"))

    return find


def split_of_row(column: str | None, path: str, part: Path, reading: Reading) -> str | None:
    """Return the split of a row: its column's, its table's, or its picture's."""
    if split := column or split_of(part, reading):
        return split
    place = os.path.abspath(reading.place) if reading.place.is_dir() else reading.root_of(part)
    return split_of_picture(Path(path), reading, place)


def names_in_lists(reading: Reading) -> dict[str, str]:
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


def last_part(name: str) -> str:
    return re.split(r"[\\/]", name)[-1].lower()


def pictures_below(reading: Reading) -> list[Path]:
    return [path for path in files_in(reading, [""]) if is_picture(path)]


def by_name(pictures: Iterable[Path]) -> dict[str, str | None]:
    """Return the path of each picture by its file's name in lower case; None for several of a name."""
    places: dict[str, str | None] = {}
    for path in pictures:
        name = path.name.lower()
        places[name] = None if name in places else os.path.abspath(path)
    return places


class Listed(Layout):
    """Layout of a list of images, given alone or with its folder, to which the names are relative."""

    def lists(self, reading: Reading) -> list[Path]:
        """Return the lists of this layout in a folder."""
        raise NotImplementedError

    def parts(self, reading: Reading) -> list[Path]:
        if reading.place.is_file():
            return [reading.place] if self.fits(reading.place) else []
        lists = self.lists(reading)
        if len(lists) > 1:
            usual = [path for path in lists if path.name.split(".")[0].lower() in USUAL]
            if are_parts(lists, reading):
                usual = lists
            elif len(usual) != 1:
                raise UserError(
                    f"{reading.place} holds several tables ({', '.join(path.name for path in lists[:5])}): name the "
                    f"one with the captions, such as {lists[0]}"
                )
            lists = usual
        return lists

    def fits(self, path: Path) -> bool:
        """Return whether a file is a list of this layout."""
        raise NotImplementedError

    def files(self, reading: Reading) -> Iterator[str]:
        parts = self.parts(reading)
        yield from map(os.path.abspath, parts)
        yield from (row.file for part in parts for row in self.find(part, reading))
        if reading.place.is_dir():
            yield from (row.file for row in self.rest(reading, parts))

    def rest(self, reading: Reading, parts: Sequence[Path]) -> Iterator[Row]:
        """Yield a row for each file; pictures that the list names are merged with the rows of the list."""
        taken = {os.path.abspath(part) for part in parts}
        for path, problem in walk(reading.place, reading.inside_only, without=reading.without):
            if os.path.abspath(path) in taken:
                continue
            if problem is None and is_picture(path):
                split = split_of_picture(path, reading)
                yield Row(reading.name_of(path), [], os.path.abspath(path), split=split)
            else:
                row = unused(path, reading, problem)
                # the place of a file that the list names
                yield Row(row.url, [], row.file, 0, problem=row.problem)
