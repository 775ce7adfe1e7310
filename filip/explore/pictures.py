"""Open the images to explore: a folder or set of images, or a benchmark card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from filip.common.errors import UserError
from filip.common.files import nothing_at
from filip.common.progress import say
from filip.eval.cards import load_card, match_classes
from filip.eval.formats import open_set
from filip.images.rgb import UNDECODABLE
from filip.sets.image_set import Picture, Pictures, SetPictures, spread


def open_pictures(images: str, root: str | None, count: int | None) -> Pictures:
    """Return the pictures of a folder, a set with captions or a benchmark card.

    images: a folder; a file or folder in any layout that :mod:`filip.sets` reads; or a card's name or path, whose data
    are below ``root``. count: maximum number, evenly spread; None: all. Raises UserError if the folder or card does
    not exist or has no picture.
    """
    place = Path(images)
    if place.is_dir():
        return SetPictures(place, count)
    if root is not None:
        return CardPictures(images, root, count)
    card = "if it is a benchmark card, say below which folder its data lie: root=DIR"
    if not place.exists():
        raise UserError(nothing_at(images, card))
    if place.suffix in (".yaml", ".yml"):
        raise UserError(f"images={images} is a file: give a folder, or a set of images with captions; {card}")
    return SetPictures(place, count)


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
