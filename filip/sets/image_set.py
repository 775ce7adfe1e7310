"""Hold a set in memory: its images in order, each once with all its captions, and the account of the others."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from filip.common.errors import UserError
from filip.common.files import nothing_at
from filip.sets.account import Account
from filip.sets.layout import Reading, Row
from filip.sets.layouts import LAYOUTS, recognise, rows_of


@dataclass(frozen=True)
class Item:
    """One image of a set, and where its bytes are."""

    name: str
    captions: list[str]
    file: str
    position: int
    size: int

    @property
    def stamp(self) -> str:
        """Distinguish a changed image from an unchanged one: size and time of the file, place in a larger one."""
        status = os.stat(self.file)
        inside = f" {self.position} {self.size}" if self.position or self.size >= 0 else ""
        return f"{status.st_size} {status.st_mtime_ns}{inside}"


class ImageSet:
    """Images of a set, in its order. account: the others, and why they were left out."""

    def __init__(self, reading: Reading, layout: str, items: list[Item], account: Account):
        self.reading, self.layout, self.items, self.account = reading, layout, items, account

    def __len__(self) -> int:
        return len(self.items)

    def read(self, item: Item) -> bytes:
        """Return the bytes of an image. Raises OSError."""
        return LAYOUTS[self.layout].read(item.file, item.position, item.size)

    def summary(self) -> str:
        """Return one line: how many images and captions, and how many were left out."""
        captions = sum(len(item.captions) for item in self.items)
        line, splits = self.account.line(), self.reading.about_splits()
        return f"{self.reading.place}: {len(self):,} images with {captions:,} captions" + (
            f"{'; ' * bool(splits)}{splits}{'; left out: ' * bool(line)}{line}"
        )


def open_images(reading: Reading, captions: bool = True) -> ImageSet:
    """Return the images of a set.

    captions: leave out images that have none, and refuse a place without captions; otherwise any folder of images will
    do. Raises UserError if nothing is understood, or not a single image is found.
    """
    if not reading.place.exists():
        raise UserError(nothing_at(reading.place, "give a folder or a file with images and captions"))
    layout, parts, reading = _recognised(reading, captions)
    rows = (row for part in [*parts, None] for row in rows_of(layout, part, reading))
    account = Account()
    items = []
    for row in merged(rows):
        problem = row.problem or _unreachable(row, layout)
        if problem is None and captions and not row.captions:
            problem = "no_caption"
        if problem is not None:
            account.add(row.url, problem)
        else:
            items.append(Item(row.url, list(row.captions), row.file, row.position, row.size))
    return ImageSet(reading, layout, items, account)


def _recognised(reading: Reading, captions: bool) -> tuple[str, list[Path], Reading]:
    if captions or not reading.place.is_dir():
        return recognise(reading)
    try:
        layout, parts, reading = recognise(reading)
        for part in parts[:1]:
            next(iter(LAYOUTS[layout].find(part, reading)), None)
    except UserError:  # a folder of images with an unrelated table
        return "text_beside", [reading.place], reading
    return layout, parts, reading


def _unreachable(row: Row, layout: str) -> str | None:
    """Return why the file of an image cannot be opened; None if it can."""
    if LAYOUTS[layout].in_order:
        return None
    if not os.path.isfile(row.file):
        if os.path.exists(row.file):
            return "not_a_file: a folder, a pipe, a socket or a device"
        return "missing_file: No such file or directory"
    return None


def merged(rows: Iterable[Row]) -> list[Row]:
    """Return one row for each image: the first row of the lowest rank, with the captions of all rows, each once.

    DuckDB does the same for ingest, where a set need not fit in memory.
    """
    by_image: dict[tuple[str, int], list[tuple[int, Row]]] = {}
    for number, row in enumerate(rows):
        by_image.setdefault((row.file, row.position), []).append((number, row))
    images = []
    for same in by_image.values():
        number, best = min(same, key=lambda one: (one[1].rank, one[0]))
        captions = dict.fromkeys(text for _, row in same for text in row.captions)
        images.append((number, replace(best, captions=list(captions))))
    return [row for _, row in sorted(images, key=lambda one: one[0])]
