"""Fit a picture that is not square to a model that sees squares: by its centre, whole with borders, or in tiles.

Or see the whole picture, and keep the features of a box.
"""

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
FITS = (*WITH_A_GRID, "tiles", "box")
CELLS = 3  # rows and columns of a box's tokens, for a token-wise model
TILES = 3  # squares of the shorter side, from one end to the other: they show all of a picture up to 3:1
_GREY = tuple(round(255 * mean) for mean in CLIP_MEAN)  # normalised, it is nought


class Padded:
    """A model's transform of the whole picture in a square with grey borders. A class, so that workers can have it.

    transform: turns an image into pixels [3, S, S].
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

    A square picture has equal tiles, so that its scores are the encoder's alone, up to rounding. Pixels are
    [b, 3 * TILES, S, S]. There is no grid: nothing can be aligned with such patches.
    """

    grid = (0, 0)

    def __init__(self, encoder: Any) -> None:  # an Encoder: its module imports this one
        self.encoder = encoder
        self.details = {**encoder.details, "fit": "tiles"}
        self.transform: Callable[[Image.Image], Tensor] = _TiledTransform(encoder.transform)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)  # texts, sizes and names are the encoder's

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode to [b, d], or [b, TILES * n1, d] if token-wise; unit length."""
        found = self.encoder.encode_images(pixels.unflatten(1, (TILES, 3)).flatten(0, 1)).unflatten(0, (-1, TILES))
        return found.flatten(1, 2) if found.ndim == 4 else F.normalize(found.mean(1), dim=-1)

    def probe_features(self, pixels: Tensor) -> Tensor:
        """Return the mean of the tiles' [b, width]."""
        features = self.encoder.probe_features(pixels.unflatten(1, (TILES, 3)).flatten(0, 1))
        return features.unflatten(0, (-1, TILES)).mean(1)

    def patches(self, pixels: Tensor) -> Tensor:
        """Raise UserError: such a picture has no single square."""
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


class Boxed:
    """An encoder that sees the whole picture, squeezed to a square, and pools its patches inside a box by RoIAlign.

    A pooled model gets one vector a box, as FG-CLIP's evaluation (arXiv 2505.05071, ``fgovd_eval.py``: 1 x 1 cells,
    aligned), a token-wise one a token for each of CELLS x CELLS cells. Pixels are [b, 4, S, S]: the first four numbers
    of the fourth channel are left, top, right and bottom, as shares of the picture. An image without a box is its own.
    """

    grid = (0, 0)

    def __init__(self, encoder: Any) -> None:
        if encoder.grid == (0, 0):
            raise UserError(f"fit=box: {encoder.name} has no patches to pool in a box; use fit=crop")
        if hasattr(encoder, "similarity") and not encoder.token_wise:
            raise UserError(f"fit=box: {encoder.name} attends to all patches of a picture; add tokens=true")
        self.encoder = encoder
        self.details = {**encoder.details, "fit": "box"}
        self.transform: Callable[[Image.Image], Tensor] = _BoxTransform(encoder.transform, encoder.image_size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode to [b, d], or [b, CELLS * CELLS, d] if token-wise; unit length."""
        from torchvision.ops import roi_align  # here: it imports torch's compiler

        rows, columns = self.encoder.grid
        boxes = pixels[:, 3, 0, :4].float() * torch.tensor([columns, rows, columns, rows], device=pixels.device)
        dense = getattr(self.encoder, "dense", self.encoder.patches)  # other models' as they project them
        found = dense(pixels[:, :3]).float()
        found = F.normalize(found, dim=-1) if self.encoder.token_wise else found
        features = found.transpose(1, 2).unflatten(2, (rows, columns))
        numbered = torch.cat([torch.arange(len(boxes), device=boxes.device)[:, None], boxes], dim=1)
        cells = CELLS if self.encoder.token_wise else 1
        found = roi_align(features, numbered.to(features.device), cells, sampling_ratio=-1, aligned=True)
        found = F.normalize(found.flatten(2).transpose(1, 2), dim=-1)
        return found if self.encoder.token_wise else found[:, 0]

    def probe_features(self, pixels: Tensor) -> Tensor:
        """Raise UserError: such a picture has no single square."""
        raise UserError("fit=box: a linear probe sees whole pictures; use fit=crop")

    def patches(self, pixels: Tensor) -> Tensor:
        """Raise UserError: such a picture has no single square."""
        raise UserError("fit=box: patches are of the whole picture; use fit=crop")


class _BoxTransform:
    """A transform of a sample to the pixels of its whole picture and its box. A class, so that workers can have it."""

    def __init__(self, transform: Callable[[Image.Image], Tensor], side: int) -> None:
        self.transform, self.side = transform, side

    def __call__(self, image: Image.Image) -> Tensor:
        return self._of(image, (0.0, 0.0, *image.size))

    def of_sample(self, sample: Any) -> Tensor:  # a Sample: its module needs no transforms
        if sample.whole is None:
            return self(sample.image)
        return self._of(sample.whole, sample.box)

    def _of(self, image: Image.Image, box: Sequence[float]) -> Tensor:
        square = to_rgb(image).resize((self.side, self.side), Image.Resampling.BICUBIC)
        place = torch.zeros(1, self.side, self.side)
        place[0, 0, :4] = torch.tensor(box) / torch.tensor([*image.size, *image.size])
        return torch.cat([self.transform(square), place])
