"""Images with a PNG of classes each: VOC, Pascal Context and ADE20K in their usual folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from filip.common.errors import UserError
from filip.eval.benchmark import BenchmarkCard
from filip.eval.datasets import EvalSet, Sample
from filip.images.rgb import ORIENTATION, read_rgb, upright


def open_set(card: BenchmarkCard, root: str | Path) -> EvalSet:
    return ClassMaps(Path(root) / card.path, list(card.classes or {}), card.name, **card.layout.options)


class ClassMaps(EvalSet):
    """Images with classes of pixels.

    folder: holds ``images`` (JPEG) and ``maps`` (PNG) of equal names.

    classes: in the order of the pixel values. first: the value of the first class; lower ones and those beyond the last
    class are unlabelled. names: a file with the names of the split, one a line; "" = all maps.
    """

    def __init__(
        self, folder: Path, classes: list[str], card: str, images: str, maps: str, names: str = "", first: int = 1
    ):
        if not classes:
            raise UserError(f"card {card}: classes should name the pixel values from {first} on, in their order")
        self.images, self.maps = folder / images, folder / maps
        if not self.images.is_dir() or not self.maps.is_dir():
            raise UserError(f"no data set at {folder} (looked for its folders {images} and {maps})")
        if names and not (folder / names).is_file():
            raise UserError(f"no list of the split at {folder / names}")
        listed = (folder / names).read_text().split() if names else sorted(p.stem for p in self.maps.glob("*.png"))
        self.names = [name for name in listed if name]
        if not self.names:
            raise UserError(f"{self.maps} has no maps of classes (.png)")
        self.classes, self.first = classes, first
        self[0]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        image, shown = self.images / f"{name}.jpg", self.maps / f"{name}.png"
        if not image.is_file() or not shown.is_file():
            raise UserError(f"{image if not image.is_file() else shown} is missing")
        values = np.asarray(_turned_like(Image.open(image), Image.open(shown))).astype(np.int64) - self.first
        values[values >= len(self.classes or [])] = -1
        return Sample(name, read_rgb(image), segments=values)


def _turned_like(picture: Image.Image, classes: Image.Image) -> Image.Image:
    """Turn a map of the pixels as they are stored as its picture is turned; other maps are of the upright picture."""
    if classes.size == picture.size:
        classes.getexif()[ORIENTATION] = picture.getexif().get(ORIENTATION, 1)
    return upright(classes)
