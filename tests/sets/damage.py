"""Draw names, captions and damage from a seed, and account for what is put into a damaged set."""

import io
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

_small = io.BytesIO()
Image.new("RGB", (4, 4), "red").save(_small, "PNG")
PICTURE = _small.getvalue()
WORDS = ("a", "dog", "cat", "café", "naïve", "bridge", "river", "über", "19", "red", "blue", "the", "l'été", '"so"')
ODD = ["", " ", "#", "%25", "é", "🐙", ";", "'", "(1)", ".v2"]
ENDINGS = (".png", ".jpg", ".JPEG", ".webp", ".bmp")


@dataclass
class Damaged:
    """A set on disk. images: name → captions of those that can be used; reasons: how many things are not, and why.

    ordered: whether the captions of an image have an order.
    """

    place: Path
    images: dict[str, list[str]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    ordered: bool = True

    @property
    def count(self) -> int:
        """Count all files, lines and keys that were put in."""
        return len(self.images) + self.reasons.total()


class Draw:
    """A source of random names and captions."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.number = 0

    def of(self, *kinds: str) -> list[str]:
        """Draw up to a dozen kinds of damage, with something good first."""
        return ["good", *self.rng.choices(["good", *kinds], k=self.rng.randint(0, 12))]

    def name(self) -> str:
        self.number += 1
        folder = self.rng.choice(["", "", "sub/", "a b/c/"])
        return f"{folder}p{self.number}{self.rng.choice(ODD)}"

    def ending(self) -> str:
        return self.rng.choice(ENDINGS)

    def caption(self) -> str:
        return " ".join(self.rng.choices(WORDS, k=self.rng.randint(1, 6)))

    def captions(self) -> list[str]:
        return list(dict.fromkeys(self.caption() for _ in range(self.rng.randint(1, 3))))


def put(path: Path, content: bytes = PICTURE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def encoded(text: str, rng: random.Random) -> bytes:
    """Encode a text as some editor writes it."""
    encoding = rng.choice(["utf-8", "utf-8-sig", "utf-16", "cp1252"])
    return text.encode(encoding)


STRAY = {
    "other_file": (".pdf", ".xyz", ".zip", "_"),
    "format": (".jxl", ".svg", ".CR2"),
    "not_a_file": (".png", ".txt"),
}


def stray(draw: Draw, found: Damaged) -> None:
    """Put up to three files there that belong to no layout."""
    for _ in range(draw.rng.randint(0, 3)):
        kind = draw.rng.choice(list(STRAY))
        path = found.place / (draw.name() + draw.rng.choice(STRAY[kind]))
        if kind == "not_a_file":
            path.parent.mkdir(parents=True, exist_ok=True)
            os.mkfifo(path)
        else:
            put(path, b"\0\1\2")
        found.reasons[kind] += 1
