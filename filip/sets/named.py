"""Find the lists of a folder, one or two levels down, and the pictures that they name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path

from filip.sets.layout import Reading, files_in, inside, is_picture, split_named, split_of_folder

SAMPLE = 50  # names of a list by which its pictures are looked for
FEW = 10  # lists of one kind in a folder; more are records that are beside pictures

Finder = Callable[[str], tuple[str, str | None]]


def lists_in(reading: Reading, suffixes: Collection[str], fits: Callable[[Path], bool]) -> list[Path]:
    """Return the lists of a folder, or else those in the folders below it."""
    for depth in (1, 2):
        there = files_in(reading, suffixes, depth)
        count = Counter((path.parent, path.suffix) for path in there)
        if found := [path for path in there if count[path.parent, path.suffix] <= FEW and fits(path)]:
            return found
    return []


def are_parts(lists: Collection[Path], place: Path) -> bool:
    """Return whether several lists are parts of one set: of different splits, or in different folders."""
    splits = [split_named(path, place) for path in lists]
    folders = {path.parent for path in lists}
    return (None not in splits and len(set(splits)) == len(lists)) or len(folders) == len(lists) > 1


def finder(part: Path, reading: Reading, names: Iterable[str]) -> Finder:
    """Return the function that gives the path of a picture that a list names, and its fault.

    names: some of the list. They are relative to the list's folder, or else to the set's. If none of these pictures is
    there, they are looked for by the last part of their names, wherever in the set they are; of several with one name
    none is taken.
    """
    root = reading.root_of(part)
    names = list(names)
    if reading.image_root or not reading.place.is_dir():
        return partial(inside, root)
    for base in (root, os.path.abspath(reading.place)):
        if any(path and os.path.lexists(path) for path, _ in (inside(base, name) for name in names)):
            return partial(inside, base)
    places = pictures_below(reading.place, reading.inside_only, reading.without)
    if not any(places.get(last_part(name)) for name in names):
        return partial(inside, root)

    def find(name: str) -> tuple[str, str | None]:
        path = places.get(last_part(name))
        return (path, None) if path else inside(root, name.replace("\\", "/"))

    return find


def split_of_row(column: str | None, path: str, part: Path, reading: Reading) -> str | None:
    """Return the split of a row: its column's, its picture's folder's, or its list's."""
    base = reading.place if reading.place.is_dir() else reading.root_of(part)
    found = column or split_of_folder(Path(path), Path(os.path.abspath(base)))
    return found or (split_named(part, reading.place) if reading.several else None)


def last_part(name: str) -> str:
    return re.split(r"[\\/]", name)[-1].lower()


def pictures_below(place: Path, inside_only: bool, without: str | None) -> dict[str, str | None]:
    """Return the path of each picture of a folder by its file's name in lower case; None for several of a name."""
    found: dict[str, str | None] = {}
    for path in files_in(Reading(place, inside_only=inside_only, without=without), [""]):
        if is_picture(path):
            name = path.name.lower()
            found[name] = None if name in found else os.path.abspath(path)
    return found
