"""Read a folder of images, each with its captions in a text of the same name: ``a.txt`` or ``a.jpg.caption``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from pathlib import Path

from filip.rgb import OTHER_PICTURES
from filip.sets.layout import Entry, Layout, Reading, Row, is_picture, split_of_folder, unused, walk
from filip.sets.samples import CAPTION_SUFFIXES, MAX_CAPTION_BYTES, TEXT_SUFFIXES, captions_in
from filip.sets.text import NotAFileError, read_file


class TextBeside(Layout):
    """Layout in which every line of an image's text is a caption."""

    about = "a folder of images, each with a .txt of the same name"

    def parts(self, reading: Reading) -> list[Path]:
        if not reading.place.is_dir():
            return []
        for _, entries in _folders(reading):
            pictures, texts = _sorted_out(entries)
            own = [_belonging(path, texts) for path in pictures if is_picture(path)]
            if any(suffix.endswith(CAPTION_SUFFIXES) for found in own for suffix in found):
                return [reading.place]  # records without texts may describe anything
        return []

    def splits(self, part: Path, reading: Reading) -> set[str | None]:
        found = walk(reading.place, reading.inside_only, without=reading.without)
        return {split_of_folder(path, reading.place) for path, _ in found if is_picture(path)}

    def find(self, part: Path, reading: Reading) -> Iterator[Row]:
        for _, entries in _folders(reading):
            pictures, texts = _sorted_out(entries)
            used: set[str] = set()
            for path in pictures:
                own = _belonging(path, texts)
                used.update(text.name for text in own.values())
                yield _picture(path, own, reading)
            for path, problem in entries:
                if path in pictures or path.name in used:
                    continue
                if problem is None and path.name in texts:
                    problem = "no_image: a text without a picture of the same name"
                yield unused(path, reading, problem)

    def files(self, reading: Reading) -> Iterator[str]:
        found = walk(reading.place, reading.inside_only, without=reading.without)
        yield from (os.path.abspath(entry.path) for entry in found)

    def rest(self, reading: Reading, parts: object) -> Iterator[Row]:
        yield from ()  # find has yielded all of them


def _folders(reading: Reading) -> Iterator[tuple[Path, list[Entry]]]:
    """Yield the files of each folder."""
    found = walk(reading.place, reading.inside_only, without=reading.without)
    for folder, entries in groupby(found, lambda entry: entry.path.parent):
        yield folder, list(entries)


def _sorted_out(entries: list[Entry]) -> tuple[dict[Path, None], dict[str, Path]]:
    """Return the pictures (also in formats that are not read), and the texts by their names."""
    pictures: dict[Path, None] = {}
    texts: dict[str, Path] = {}
    for path, problem in entries:
        if problem is None and (is_picture(path) or path.suffix.lower() in OTHER_PICTURES):
            pictures[path] = None
        elif problem is None and path.suffix.lower()[1:] in TEXT_SUFFIXES:
            texts[path.name] = path
    return pictures, texts


def _belonging(picture: Path, texts: dict[str, Path]) -> dict[str, Path]:
    """Return the texts of a picture by their suffixes: ``a.txt`` and ``a.jpg.txt``."""
    found = {}
    for suffix in TEXT_SUFFIXES:
        for name in (f"{picture.stem}.{suffix}", f"{picture.name}.{suffix}"):
            if name in texts:
                found[name.removeprefix(f"{picture.stem}.")] = texts[name]
    return found


def _picture(path: Path, texts: dict[str, Path], reading: Reading) -> Row:
    if not is_picture(path):
        return unused(path, reading)
    try:
        files = {suffix: partial(read_file, text, 0, MAX_CAPTION_BYTES) for suffix, text in texts.items()}
        captions, group, problem = captions_in(files, reading)
    except NotAFileError as error:
        captions, group, problem = [], None, f"not_a_file: its text is {error.strerror}"
    except OSError as error:
        captions, group, problem = [], None, f"missing_file: its text: {error.strerror}"
    split = split_of_folder(path, reading.place)
    return Row(reading.name_of(path), captions, os.path.abspath(path), group=group, problem=problem, split=split)
