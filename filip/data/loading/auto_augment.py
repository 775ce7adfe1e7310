"""AutoAugment's ImageNet policy with an explicit source of randomness."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import autoaugment as tv

_LEVELS = np.arange(256)


class AutoAugment:
    """torchvision's AutoAugment (ImageNet policy), with every draw from the generator that the caller passes.

    Policies, magnitudes and results are torchvision's. The operations that only map grey levels are done here
    with tables, to the same pixels, since PIL builds those tables in Python, level by level.
    """

    def __init__(self, size: int, fill: Sequence[int]) -> None:
        library = tv.AutoAugment(tv.AutoAugmentPolicy.IMAGENET)
        space = library._augmentation_space(10, (size, size))
        self.policies = library.policies
        self.magnitudes = {name: (values.tolist(), signed) for name, (values, signed) in space.items()}
        self.fill = [float(f) for f in fill]

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """Return an augmented copy of an RGB image."""
        policy = self.policies[rng.randrange(len(self.policies))]
        draws = [(rng.random(), rng.random() < 0.5) for _ in policy]
        for (name, probability, step), (chance, negative) in zip(policy, draws, strict=True):
            if chance <= probability:
                values, signed = self.magnitudes[name]
                magnitude = float(values[step]) if step is not None else 0.0
                image = self.apply(image, name, -magnitude if signed and negative else magnitude)
        return image

    def apply(self, image: Image.Image, name: str, magnitude: float) -> Image.Image:
        """Apply one operation of the policy to an RGB image."""
        if name == "Posterize":
            return _map_levels(image, (_LEVELS & -(1 << (8 - int(magnitude)))).tolist() * 3)
        if name == "Solarize":
            return _map_levels(image, np.where(magnitude > _LEVELS, _LEVELS, 255 - _LEVELS).tolist() * 3)
        if name == "Invert":
            return _map_levels(image, (255 - _LEVELS).tolist() * 3)
        if name in ("Equalize", "AutoContrast"):
            table = _equalize_table if name == "Equalize" else _auto_contrast_table
            histogram = np.array(image.histogram()).reshape(3, 256)
            return _map_levels(image, np.concatenate([table(channel) for channel in histogram]).tolist())
        return tv._apply_op(image, name, magnitude, InterpolationMode.BILINEAR, self.fill)


def _map_levels(image: Image.Image, table: list[int]) -> Image.Image:
    """Return ``image.point(table)`` without its loop over 768 entries in Python, which costs more than the image."""
    return image._new(image.im.point(table, None))


def _equalize_table(histogram: np.ndarray) -> np.ndarray:
    used = histogram[histogram > 0]
    step = int(used.sum() - used[-1]) // 255 if len(used) > 1 else 0
    if not step:
        return _LEVELS
    return (step // 2 + np.cumsum(histogram) - histogram) // step


def _auto_contrast_table(histogram: np.ndarray) -> np.ndarray:
    used = histogram.nonzero()[0]
    low, high = int(used[0]), int(used[-1])
    if high <= low:
        return _LEVELS
    scale = 255.0 / (high - low)
    return np.clip((_LEVELS * scale - low * scale).astype(np.int64), 0, 255)
