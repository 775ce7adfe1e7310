"""Read a folder of images, each with its captions in a text of the same name: ``a.txt`` or ``a.jpg.caption``.

Where there is no such text, captions are the descriptions of Google Takeout's records (``a.jpg.json``).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import groupby, islice
from pathlib import Path

from filip.images.rgb import OTHER_PICTURES
from filip.sets.columns import CAPTION_SUFFIXES, MAX_CAPTION_BYTES, TEXT_SUFFIXES, About, captions_in
from filip.sets.layout import Entry, Layout, Reading, Row, is_picture, split_of_picture, unused, walk
from filip.sets.table import pictures_below
from filip.sets.text import NotAFileError, read_file

LOOKED_AT = 50  # pictures in which a description is looked for before the folder has none
TAKEOUT = re.compile(r"\.supp[a-z-]*\.json$")  # a.jpg.supplemental-metadata.json, which may be cut short


class TextBeside(Layout):
    """Layout in which every line of an image's text is a caption."""

    about = "a folder of images, each with a .txt of the same name, or with Google Takeout's records"

    def parts(self, reading: Reading) -> list[Path]:
        if not reading.place.is_dir():
            return []
        for _, entries in _folders(reading):
            pictures, texts = _sorted_out(entries)
            suffixes = [_belonging(path, texts) for path in pictures if is_picture(path)]
            if any(suffix.endswith(CAPTION_SUFFIXES) for files in suffixes for suffix in files):
                return [reading.place]  # records without texts may describe anything
        return [reading.place] if _is_described(reading) else []

    def splits(self, part: Path, reading: Reading) -> Counter[str | None]:
        """Count the pictures by their folders, or by their records where one of the first has a split."""
        by_folder = Counter(split_of_picture(path, reading) for path in pictures_below(reading))
        first = {row.split for row in islice(self.find(part, reading), LOOKED_AT) if row.captions}
        if first <= by_folder.keys():
            return by_folder
        return Counter(row.split for row in self.find(part, reading) if row.captions)

    def find(self, part: Path, reading: Reading) -> Iterator[Row]:
        for _, entries in _folders(reading):
            pictures, texts = _sorted_out(entries)
            used: set[str] = set()
            for path in pictures:
                texts_of = _belonging(path, texts)
                used.update(text.name for text in texts_of.values())
                yield _picture(path, texts_of, reading)
            for path, problem in entries:
                if path in pictures or path.name in used:
                    continue
                if problem is None and path.name in texts:
                    problem = "no_image: a text without a picture of the same name"
                yield unused(path, reading, problem)

    def files(self, reading: Reading) -> Iterator[str]:
        entries = walk(reading.place, reading.inside_only, without=reading.without)
        yield from (os.path.abspath(entry.path) for entry in entries)

    def rest(self, reading: Reading, parts: object) -> Iterator[Row]:
        yield from ()  # find has yielded them all


def _folders(reading: Reading) -> Iterator[tuple[Path, list[Entry]]]:
    """Yield the files of each folder."""
    files = walk(reading.place, reading.inside_only, without=reading.without)
    for folder, entries in groupby(files, lambda entry: entry.path.parent):
        yield folder, list(entries)


def _sorted_out(entries: list[Entry]) -> tuple[dict[Path, None], dict[str, Path]]:
    """Return the pictures (also in formats that are not read), and the texts by their names."""
    pictures: dict[Path, None] = {}
    texts: dict[str, Path] = {}
    for path, problem in entries:
        if problem is None and (is_picture(path) or path.suffix.lower() in OTHER_PICTURES):
            pictures[path] = None
        elif problem is None and path.suffix.lower()[1:] in TEXT_SUFFIXES:
            texts[TAKEOUT.sub(".json", path.name)] = path
    return pictures, texts


def _belonging(picture: Path, texts: dict[str, Path]) -> dict[str, Path]:
    """Return the texts of a picture by their suffixes: ``a.txt`` and ``a.jpg.txt``."""
    files = {}
    for suffix in TEXT_SUFFIXES:
        for name in (f"{picture.stem}.{suffix}", f"{picture.name}.{suffix}"):
            if name in texts:
                files[name.removeprefix(f"{picture.stem}.")] = texts[name]
    return files


def _is_described(reading: Reading) -> bool:
    """Return whether some of the first pictures have a description by Google Takeout."""
    looked = 0
    for _, entries in _folders(reading):
        pictures, texts = _sorted_out(entries)
        for path in filter(is_picture, pictures):
            belonging = _belonging(path, texts)
            records = {suffix: text for suffix, text in belonging.items() if suffix.endswith(".json")}
            if _picture(path, records, reading).captions:
                return True
            looked += 1
            if looked == LOOKED_AT:
                return False
    return False


def _picture(path: Path, texts: dict[str, Path], reading: Reading) -> Row:
    if not is_picture(path):
        return unused(path, reading)
    try:
        files = {suffix: partial(read_file, text, 0, MAX_CAPTION_BYTES) for suffix, text in texts.items()}
        captions, group, problem, split = captions_in(files, reading)
    except NotAFileError as error:
        captions, group, problem, split = About([], problem=f"not_a_file: its text is {error.strerror}")
    except OSError as error:
        captions, group, problem, split = About([], problem=f"missing_file: its text: {error.strerror}")
    split = split or split_of_picture(path, reading)
    return Row(reading.name_of(path), captions, os.path.abspath(path), group=group, problem=problem, split=split)
