"""Fit a picture that is not square to a model that sees squares: by its centre, or whole with borders."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from torch import Tensor

from filip.images.pixels import CLIP_MEAN
from filip.images.rgb import to_rgb

FITS = ("crop", "pad")
_GREY = tuple(round(255 * mean) for mean in CLIP_MEAN)  # normalised, it is nought


class Padded:
    """A model's transform of the whole picture in a square with grey borders. A class, so that workers can have it.

    transform: turns an image into pixels [3, S, S].
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> Tensor:
        image = to_rgb(image)
        side = max(image.size)
        page = Image.new("RGB", (side, side), _GREY)
        page.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return self.transform(page)
