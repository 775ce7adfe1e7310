"""Read the pictures of a folder or a set, to index, search or explore."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from PIL import Image
from torch import Tensor

from filip.common.errors import UserError, plain
from filip.common.files import nothing_at
from filip.common.progress import say
from filip.images.rgb import FORMATS, IMAGE_FILES, UNDECODABLE, read_rgb
from filip.sets.image_set import open_images
from filip.sets.layout import ALL, Reading


@dataclass
class Picture:
    """An image. things: the names in its first caption; masks: names of things, and where each is (mode L, 0 or 255),
    if the data set has it."""

    key: str
    image: Image.Image  # RGB
    captions: list[str] = field(default_factory=list)
    things: list[str] = field(default_factory=list)
    masks: list[tuple[str, Image.Image]] = field(default_factory=list)


class Pictures:
    """``len`` pictures under a ``title``. Iterating skips pictures that cannot be read, with a line on stderr each."""

    title: str

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Picture]:
        raise NotImplementedError

    def stored(self, model: str) -> dict[str, Tensor]:
        """Return image tokens [n1, d] float32 of a model that are stored already, by key."""
        return {}


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


def middle_square(image: Image.Image) -> Image.Image:
    """Return the part of an image that a model sees."""
    square = min(image.size)
    left, top = (image.width - square) // 2, (image.height - square) // 2
    return image.crop((left, top, left + square, top + square))


def thumbnail(image: Image.Image, side: int) -> bytes:
    """Return the part of an image that a model sees, its middle square, as WebP of at most ``side`` pixels."""
    cut = middle_square(image)
    if cut.width > side:
        cut = cut.resize((side, side), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    cut.save(encoded, "WEBP", quality=82, method=4)
    return encoded.getvalue()
