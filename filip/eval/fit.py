"""Fit a picture that is not square to a model that sees squares: by its centre, whole with borders, or in tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from filip.errors import UserError
from filip.pixels import CLIP_MEAN
from filip.rgb import to_rgb

WITH_A_GRID = ("crop", "pad")  # after which patches have a place in the picture
FITS = (*WITH_A_GRID, "tiles")
TILES = 3  # squares of the shorter side, from one end to the other: they show all of a picture up to 3:1
_GREY = tuple(round(255 * mean) for mean in CLIP_MEAN)  # normalised, it is nought


class Padded:
    """A model's transform of the whole picture in a square with grey borders. A class, so that workers can have it.

    transform: of an image to pixels [3, S, S].
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> Tensor:
        return self.transform(squared(to_rgb(image)))


def squared(image: Image.Image) -> Image.Image:
    """Return an RGB image with borders above and below, or left and right, that make it square."""
    side = max(image.size)
    if image.size == (side, side):
        return image
    page = Image.new("RGB", (side, side), _GREY)
    page.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return page


class Tiled:
    """An encoder that sees each picture as :data:`TILES` squares: all their tokens, or the mean of pooled vectors.

    A square picture has equal tiles, so that its scores are those of the encoder alone, up to rounding. Pixels are
    [b, 3 * TILES, S, S]. There is no grid: nothing can be aligned with such patches.
    """

    grid = (0, 0)

    def __init__(self, encoder: Any) -> None:  # an Encoder, whose module imports this one
        self.encoder = encoder
        self.details = {**encoder.details, "fit": "tiles"}
        self.transform: Callable[[Image.Image], Tensor] = _TiledTransform(encoder.transform)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)  # texts, sizes and names are the encoder's

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode to [b, d], or [b, TILES * n1, d] if token-wise; unit length."""
        found = self.encoder.encode_images(pixels.unflatten(1, (TILES, 3)).flatten(0, 1)).unflatten(
            0, (-1, TILES)
        )
        return found.flatten(1, 2) if self.encoder.token_wise else F.normalize(found.mean(1), dim=-1)

    def probe_features(self, pixels: Tensor) -> Tensor:
        """Return the mean of the tiles' [b, width]."""
        found = self.encoder.probe_features(pixels.unflatten(1, (TILES, 3)).flatten(0, 1))
        return found.unflatten(0, (-1, TILES)).mean(1)

    def image_and_probe(self, pixels: Tensor) -> None:
        """Return None: the two are two passes."""

    def patches(self, pixels: Tensor) -> Tensor:
        """Refuse: raises UserError."""
        raise UserError("fit=tiles: no picture of patches can be drawn of tiles; use fit=pad or fit=crop")


class _TiledTransform:
    """A transform of a picture to the pixels of its tiles, stacked. A class, so that workers can have it."""

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transform = transform

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.cat([self.transform(tile) for tile in tiles(to_rgb(image))])


def tiles(image: Image.Image) -> Sequence[Image.Image]:
    """Return :data:`TILES` squares of the shorter side along the longer, from end to end."""
    side = min(image.size)
    steps = [
        (round(n * (image.width - side) / (TILES - 1)), round(n * (image.height - side) / (TILES - 1)))
        for n in range(TILES)
    ]
    return [image.crop((left, top, left + side, top + side)) for left, top in steps]
