"""Read the images of a benchmark, for the search of copies of them in training data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from filip.common.files import digest, file_state
from filip.eval.cards import BenchmarkCard, load_cards
from filip.eval.formats import open_set


def _card(name: str) -> BenchmarkCard:
    return load_cards([name])[0]


def state_of(card: str, root: str) -> str:
    """Return a short hash of the names, sizes and times of a card's files below ``root``."""
    place = Path(root) / _card(card).path
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    return digest([str(place.resolve()), [[str(file), file_state(file)] for file in files]])[:16]


def test_images(card: str, root: str) -> Iterator[tuple[str, Image.Image]]:
    """Yield the key and the picture of each image of a card (``NAME`` or ``NAME@LAYOUT``).

    Raises UserError if its data set is not below ``root``."""
    data = open_set(_card(card), root)
    for number in range(len(data)):
        sample, _ = data.read(number)
        if sample is not None:
            yield sample.key, sample.image
