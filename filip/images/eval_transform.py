"""Evaluation's image transform (resize, centre crop, CLIP's normalisation), and back from tensors to pixels.

The decoders and augmentations of training are in :mod:`filip.loading.augment`.
"""

from __future__ import annotations

import functools
import io
import random

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from filip.images.pixels import CLIP_MEAN, CLIP_STD
from filip.images.rgb import FORMATS, to_rgb

_SCALE = (1 / 255 / torch.tensor(CLIP_STD)).view(3, 1, 1)
_SHIFT = (-torch.tensor(CLIP_MEAN) / torch.tensor(CLIP_STD)).view(3, 1, 1)


def normalize(pixels: np.ndarray) -> Tensor:
    """Turn uint8 ``[S, S, 3]`` into float32 ``[3, S, S]`` with CLIP's mean and deviation."""
    return normalize_planes(torch.as_tensor(pixels).permute(2, 0, 1))


def normalize_planes(pixels: Tensor) -> Tensor:
    """Turn uint8 ``[..., 3, S, S]`` into float32 with CLIP's mean and deviation, on their device."""
    scale, shift = _constants(pixels.device)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(scale).add_(shift)


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    return _SCALE.to(device), _SHIFT.to(device)


def denormalize(pixels: Tensor) -> np.ndarray:
    """Turn float ``[..., 3, S, S]`` back into uint8 ``[..., S, S, 3]``, to show as a picture."""
    values = (pixels.detach().float().cpu() - _SHIFT) / _SCALE
    return values.round().clamp(0, 255).to(torch.uint8).movedim(-3, -1).numpy()


class EvalTransform:
    """Evaluation transform: shorter side to ``image_size`` (bicubic), centre crop, CLIP's normalisation; not random."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size

    def __call__(self, image: Image.Image) -> Tensor:
        """Return float32 ``[3, S, S]``."""
        return normalize(self._crop(image))

    def pixels(self, data: bytes, rng: random.Random | None = None) -> np.ndarray:
        """Return uint8 ``[S, S, 3]`` of an encoded image, not normalised; the generator is not used."""
        return self._crop(Image.open(io.BytesIO(data), formats=FORMATS))

    def _crop(self, image: Image.Image) -> np.ndarray:
        size, image = self.image_size, to_rgb(image)
        width, height = image.size
        new = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
        if new != image.size:
            image = image.resize(new, Image.Resampling.BICUBIC)
        left, top = round((new[0] - size) / 2), round((new[1] - size) / 2)
        return np.array(image.crop((left, top, left + size, top + size)))
