"""Images to explore, from a folder of files or from a benchmark card, and other people's images read within bounds."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from torch import Tensor

from filip.rgb import FORMATS, IMAGE_FILES, MAX_ASPECT, UNDECODABLE, not_read, to_rgb
from filip.errors import UserError
from filip.eval.cards import load_card, match_classes
from filip.eval.formats import open_set
from filip.files import nothing_at
from filip.progress import say

MAX_BYTES = 10_000_000
MAX_PIXELS = 40_000_000


@dataclass
class Picture:
    """One image. things: what its first caption names, if the data set says that."""

    key: str
    image: Image.Image  # RGB
    captions: list[str] = field(default_factory=list)
    things: list[str] = field(default_factory=list)


class Pictures:
    """``len`` pictures under a ``title``. Iterating skips those that cannot be read, with a line on stderr each."""

    title: str

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Picture]:
        raise NotImplementedError

    def stored(self, model: str) -> dict[str, Tensor]:
        """Image tokens [n1, d] float32 by a model that are already there, by key."""
        return {}


def open_pictures(images: str, root: str | None, count: int | None) -> Pictures:
    """The pictures of a folder, a search index or a benchmark card.

    images: a folder, one that ``filip index build`` has written, or a card's name or path, whose data lie below
    ``root``. count: at most so many, evenly spread over the folder or set; None: all. Raises UserError if there is no
    such folder or card, or no picture in it.
    """
    if (Path(images) / "about.json").is_file():
        return IndexedPictures(Path(images), count)
    if Path(images).is_dir():
        return FolderPictures(Path(images), count)
    if root is None:
        card = "if it is a benchmark card, say below which folder its data lie: root=DIR"
        if not Path(images).exists():
            raise UserError(nothing_at(images, card))
        raise UserError(f"images={images} is a file: give a folder; {card}")
    return CardPictures(images, root, count)


class FolderPictures(Pictures):
    """All image files below a folder. A ``.txt`` of the same name beside a file holds its captions, one a line."""

    def __init__(self, folder: Path, count: int | None) -> None:
        if not folder.exists():
            raise UserError(nothing_at(folder, "give a folder with images in it, or below it"))
        if not folder.is_dir():
            raise UserError(f"{folder} is a file: give a folder with images in it, or below it")
        root = folder.resolve()
        # What a link points at outside of the folder is not part of it.
        files = sorted(
            path
            for path in folder.rglob("*")
            if path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(folder).parts)
            and path.resolve().is_relative_to(root)
        )
        found = [path for path in files if path.suffix.lower() in IMAGE_FILES and _is_text(path)]
        unnamed = [path for path in files if path.suffix.lower() in IMAGE_FILES and not _is_text(path)]
        self.left_out = not_read(files)
        if unnamed:  # of an old disk: no index and no page can hold such a name
            first = os.fsencode(unnamed[0].relative_to(folder))
            said = f"{len(unnamed)} whose names are not UTF-8, such as {first!r}; rename them"
            self.left_out = ", ".join(filter(None, [self.left_out, said]))
        if not found:
            also = f"; left out: {self.left_out}" if self.left_out else ""
            raise UserError(f"no image below {folder} (looked for {', '.join(IMAGE_FILES)}){also}")
        if self.left_out:
            say(f"{folder}: left out {self.left_out}")
        self.folder, self.title = folder, root.name
        self.paths = spread(found, count)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Picture]:
        for path in self.paths:
            key = str(path.relative_to(self.folder))
            try:
                image = read_image(path.read_bytes(), max_bytes=None)
            except UserError as error:
                say(f"left out {key}: {error}")
                continue
            beside = path.with_suffix(".txt")
            inside = beside.is_file() and beside.resolve().is_relative_to(self.folder.resolve())
            text = beside.read_text(encoding="utf-8", errors="replace") if inside else ""
            yield Picture(key, image, [line.strip() for line in text.splitlines() if line.strip()])


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


class IndexedPictures(FolderPictures):
    """The folder of a search index; the model that made the index need not encode its images again."""

    def __init__(self, index: Path, count: int | None) -> None:
        # Here: the index's own package is an extra, and reads this module.
        from filip.index.store import Index

        self.index = index
        opened = Index.open(index)
        self.about = opened.about
        opened.close()
        super().__init__(Path(self.about.images), count)

    def stored(self, model: str) -> dict[str, Tensor]:
        """Of the images that have not changed since; none of another model, or of rounded tokens."""
        from filip.index.build import stamp, weights_of
        from filip.index.store import Index

        if self.about.dtype != "float32" or weights_of(model) != self.about.weights:
            return {}
        index = Index.open(self.index)
        stamps, wanted = index.stamps(), {str(path.relative_to(self.folder)): path for path in self.paths}
        fresh = {key for key, path in wanted.items() if stamps.get(key) == stamp(path)}
        found = {key: tokens for key, tokens in index.tokens() if key in fresh}
        index.close()
        return found


class CardPictures(Pictures):
    """The images of a benchmark with their captions, or with the name of their class as one."""

    def __init__(self, card: str, root: str, count: int | None) -> None:
        self.card = load_card(card)
        self.data = open_set(self.card, root)
        self.title = self.card.title
        self.classes = None if self.data.classes is None else match_classes(self.card, self.data.classes)
        self.indices = spread(range(len(self.data)), count)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Picture]:
        for index in self.indices:
            try:
                sample = self.data[index]
            except UNDECODABLE as error:
                say(f"left out image {index} of {self.card.name}: {error}")
                continue
            captions = sample.captions if self.classes is None else [self.classes[sample.label]]
            yield Picture(sample.key, sample.image, captions, [thing.label for thing in sample.things])


def spread(items: Sequence, count: int | None) -> list:
    """At most ``count`` items, evenly spread, the first among them."""
    if count is None or count >= len(items):
        return list(items)
    if count < 1:
        raise UserError(f"count={count}: at least one image, or null for all")
    return [items[index * len(items) // count] for index in range(count)]


def read_image(data: bytes, max_bytes: int | None = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An encoded image of unknown origin as RGB. Its size is read from the header, before a pixel is decoded.

    Raises UserError if it has more than ``max_bytes`` or ``max_pixels``, is more than 20 times as long as wide, or
    is none of the formats of :data:`filip.rgb.FORMATS`.
    """
    if max_bytes is not None and len(data) > max_bytes:
        raise UserError(f"the image has {len(data):,} bytes, more than {max_bytes:,}: make it smaller")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > max_pixels:
                raise UserError(
                    f"the image has {width} x {height} pixels, more than {max_pixels:,}: make it smaller"
                )
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise UserError(
                    f"the image has {width} x {height} pixels: too long and narrow for a model's square"
                )
            opened.load()
            return to_rgb(opened)
    except UNDECODABLE as error:
        raise UserError(f"not an image that can be read ({', '.join(FORMATS)})") from error


def thumbnail(image: Image.Image, side: int) -> bytes:
    """What a model sees of an image, its middle square, as WebP of at most ``side`` pixels."""
    square = min(image.size)
    left, top = (image.width - square) // 2, (image.height - square) // 2
    cut = image.crop((left, top, left + square, top + square))
    if square > side:
        cut = cut.resize((side, side), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    cut.save(encoded, "WEBP", quality=82, method=4)
    return encoded.getvalue()
