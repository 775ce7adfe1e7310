"""Hold a set in memory: its images in order, each once with all its captions, and the account of the others."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from PIL import Image

from filip.common.errors import UserError, plain
from filip.common.files import nothing_at
from filip.common.progress import say
from filip.images.rgb import FORMATS, IMAGE_FILES, UNDECODABLE, not_read, read_rgb
from filip.sets.layout import ALL, Reading, Row
from filip.sets.layouts import LAYOUTS, recognise, rows_of

SHOWN = 5  # examples per reason
WORDS = {  # words for the reasons, in a sentence
    "no_caption": "without a caption",
    "no_image": "captions without a picture",
    "other_file": "other files",
    "broken_line": "lines that cannot be read",
    "not_text": "whose texts cannot be read",
    "not_wanted": "not asked for",
    "not_a_file": "that are not files",
    "no_file": "rows that name no file",
    "missing_file": "missing files",
    "outside": "outside of the folder",
    "second_image": "further pictures of a key",
    "name": "whose names are not UTF-8",
}


class Account:
    """Counts and examples of unused files."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self._formats: Counter[str] = Counter()

    def add(self, name: str | None, problem: str) -> None:
        """Note that ``name`` was not used. problem: "reason: detail" or the reason alone."""
        name = name or "one without a name"
        reason, _, detail = problem.partition(":")
        self.counts[reason] += 1
        if reason == "format":
            self._formats[Path(name).suffix.lower()] += 1
        if len(self.examples.setdefault(reason, [])) < SHOWN:
            self.examples[reason].append(f"{name} ({detail.strip()})" if detail else name)

    def line(self) -> str:
        """Return ``2 .cr2 (these formats are not read), 1 missing files, such as b.png``; "" for nothing."""
        said = []
        if self._formats:
            said.append(not_read(Path(f"x{suffix}") for suffix in sorted(self._formats.elements())))
        for reason, count in self.counts.most_common():
            if reason == "format":
                continue
            example = self.examples[reason][0]
            # a name from an old disk, which no terminal shows
            if not example.isprintable():
                name = example.partition(" (")[0] if reason == "name" else example
                shown = repr(name.encode("utf-8", "surrogateescape"))
                example = f"{shown}; rename them" if reason == "name" else shown
            said.append(f"{count:,} {WORDS.get(reason, reason)}, such as {example[:150]}")
        return ", ".join(said)


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
        problem = row.problem
        if problem is None and not LAYOUTS[layout].in_order and not os.path.isfile(row.file):
            other = "not_a_file: a folder, a pipe, a socket or a device"
            problem = other if os.path.exists(row.file) else "missing_file: No such file or directory"
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


@dataclass
class Picture:
    """An image. things: the names in its first caption, if the data set has them."""

    key: str
    image: Image.Image  # RGB
    captions: list[str] = field(default_factory=list)
    things: list[str] = field(default_factory=list)


class Pictures:
    """``len`` pictures under a ``title``. Iterating skips pictures that cannot be read, with a line on stderr each."""

    title: str

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Picture]:
        raise NotImplementedError


class SetPictures(Pictures):
    """All images of a folder, or of a set with captions. Links that lead out of the folder are not followed."""

    def __init__(self, place: Path, count: int | None) -> None:
        if not place.exists():
            raise UserError(nothing_at(place, "give a folder with images in it, or below it"))
        self.images = open_images(Reading(place, split=ALL, inside_only=True), captions=False)
        self.left_out = self.images.account.line()
        if not len(self.images):
            also = f"; left out: {self.left_out}" if self.left_out else ""
            raise UserError(f"no image below {place} (looked for {', '.join(IMAGE_FILES)}){also}")
        if self.left_out:
            say(f"{place}: left out {self.left_out}")
        self.title = place.resolve().name
        self.items = {item.name: item for item in spread(self.images.items, count)}

    def __len__(self) -> int:
        return len(self.items)

    def read(self, key: str) -> Image.Image:
        """Return a picture as RGB. Raises UserError if it cannot be read."""
        try:
            return read_image(io.BytesIO(self.images.read(self.items[key])))
        except OSError as error:
            raise UserError(f"cannot be read: {plain(error)}") from error

    def __iter__(self) -> Iterator[Picture]:
        for key, item in self.items.items():
            try:
                image = self.read(key)
            except UserError as error:
                say(f"left out {key}: {error}")
                continue
            yield Picture(key, image, item.captions)


def spread(items: Sequence, count: int | None) -> list:
    """Return at most ``count`` items, evenly spread, including the first."""
    if count is None or count >= len(items):
        return list(items)
    if count < 1:
        raise UserError(f"count={count}: at least one image, or null for all")
    return [items[index * len(items) // count] for index in range(count)]


def read_image(file: Path | IO[bytes]) -> Image.Image:
    """Read a picture to index, search or explore: as :func:`filip.images.rgb.read_rgb`, large JPEGs as drafts.

    Raises UserError if it cannot be read, or is too long and narrow.
    """
    try:
        return read_rgb(file, draft=True)
    except UNDECODABLE as error:
        if isinstance(error, ValueError) or getattr(error, "strerror", None):
            raise UserError(plain(error)) from error
        raise UserError(f"not an image that can be read ({', '.join(FORMATS)})") from error


def thumbnail(image: Image.Image, side: int) -> bytes:
    """Return the part of an image that a model sees, its middle square, as WebP of at most ``side`` pixels."""
    square = min(image.size)
    left, top = (image.width - square) // 2, (image.height - square) // 2
    cut = image.crop((left, top, left + square, top + square))
    if cut.width > side:
        cut = cut.resize((side, side), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    cut.save(encoded, "WEBP", quality=82, method=4)
    return encoded.getvalue()
