"""Turn images into tensors for training: decoding, random resized crop, flip and AutoAugment.

Every random choice comes from the generator that the caller passes, never from a global one, so that an
augmented image is a function of (image, seed) alone.
"""

from __future__ import annotations

import io
import math
import random
from typing import NamedTuple, TypeVar

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import autoaugment as tv
from torchvision.transforms.v2.functional import equalize

from filip.images.pixels import CLIP_MEAN
from filip.images.rgb import FORMATS, to_rgb
from filip.loading.config import AugmentConfig

# the colour that AutoAugment fills in; close to 0 once normalised
_FILL = tuple(round(255 * m) for m in CLIP_MEAN)
T = TypeVar("T", Image.Image, Tensor)


class Draws(NamedTuple):
    """The random choices for a crop, which the loader makes wherever they are carried out."""

    flip: bool
    operations: tuple[int, int]  # AutoAugment's, by their numbers


class TrainTransform:
    """Random resized crop, horizontal flip, optionally AutoAugment on the crop.

    The crop keeps between ``augment.crop_scale_min`` and all of the area. crop_ratio: range of its width / height
    (torchvision's; the paper names none).
    """

    def __init__(
        self, image_size: int, augment: AugmentConfig | None = None, crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    ) -> None:
        augment = augment or AugmentConfig()
        self.image_size = image_size
        self.auto_augment, self.auto_augment_share = AutoAugment(image_size), augment.auto_augment
        self.crop_scale, self.crop_ratio = (augment.crop_scale_min, 1.0), crop_ratio
        self.flip_probability = augment.flip_probability

    def pixels(self, data: bytes, rng: random.Random) -> np.ndarray:
        """Return uint8 ``[S, S, 3]`` of an encoded image, not normalised; raise one of ``rgb.UNDECODABLE``."""
        return self._finish(*self.crop(data, rng))

    def crop(self, data: bytes, rng: random.Random) -> tuple[np.ndarray, Draws]:
        """Return a crop of an encoded image, uint8 ``[h, w, 3]``, and the choices that remain to be carried out.

        A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the crop then still has the pixels that it needs.
        Raises one of ``rgb.UNDECODABLE``.
        """
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        left, top, width, height = self._crop(image.width, image.height, rng)
        full, factor = image.width, min(width, height) / self.image_size
        if factor >= 2:
            image.draft(None, (math.ceil(full / factor), math.ceil(image.height / factor)))
        factor = full / image.width
        box = (
            int(left / factor), int(top / factor),
            min(round((left + width) / factor), image.width), min(round((top + height) / factor), image.height),
        )  # fmt: skip
        flip, share = rng.random() < self.flip_probability, self.auto_augment_share
        augmented = share >= 1 or (share > 0 and rng.random() < share)
        return _pixels(image, data, box), Draws(flip, self.auto_augment.draw(rng) if augmented else (0, 0))

    def _finish(self, crop: np.ndarray, draws: Draws) -> np.ndarray:
        """Do everything after decoding. :func:`filip.loading.augment_on_device.finish` does it for a batch of crops."""
        # bicubic with antialiasing, within one grey level of PIL's and three times as fast
        planes = torch.tensor(crop).permute(2, 0, 1)[None]  # a copy: pixels of PIL's are read-only
        resized = F.interpolate(planes, (self.image_size, self.image_size), mode="bicubic", antialias=True)
        pixels = resized[0].permute(1, 2, 0).contiguous().numpy()
        if draws.flip:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        if any(draws.operations):
            image = Image.fromarray(pixels)
            for number in draws.operations:
                image = self.auto_augment.apply(image, number)
            pixels = np.array(image)
        return pixels

    def _crop(self, width: int, height: int, rng: random.Random) -> tuple[int, int, int, int]:
        """Draw a crop as torchvision's RandomResizedCrop.get_params: left, top, width, height."""
        low, high = (math.log(r) for r in self.crop_ratio)
        for _ in range(10):
            area = width * height * rng.uniform(*self.crop_scale)
            ratio = math.exp(rng.uniform(low, high))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return rng.randint(0, width - w), rng.randint(0, height - h), w, h
        ratio = min(max(width / height, self.crop_ratio[0]), self.crop_ratio[1])
        w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
        return (width - w) // 2, (height - h) // 2, w, h


def _pixels(image: Image.Image, data: bytes, box: tuple[int, int, int, int]) -> np.ndarray:
    """Decode a box (left, top, right, bottom) of an opened image: uint8 ``[h, w, 3]``.

    A plain JPEG takes the shorter way to the library that Pillow decodes with: the same pixels in 0.6 of the time.
    """
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        try:
            pixels = simplejpeg.decode_jpeg(data, min_width=image.width, min_height=image.height)
        except ValueError:  # damaged: Pillow decides what of it is bearable
            pass
        else:
            if pixels.shape[:2] == (image.height, image.width):
                return np.ascontiguousarray(pixels[box[1] : box[3], box[0] : box[2]])
    return np.asarray(to_rgb(image).crop(box))


def decode(data: bytes) -> np.ndarray:
    """Return uint8 ``[H, W, 3]`` of an encoded image; raise one of ``rgb.UNDECODABLE``."""
    return np.array(to_rgb(Image.open(io.BytesIO(data), formats=FORMATS)))


class AutoAugment:
    """torchvision's AutoAugment (ImageNet policy), with every draw from the generator that the caller passes.

    ``operations``: each with its magnitude, by number, so that equal ones of a batch are done at once. 0 does nothing.
    """

    def __init__(self, size: int, fill: tuple[int, ...] = _FILL) -> None:
        library = tv.AutoAugment(tv.AutoAugmentPolicy.IMAGENET)
        space, numbers = library._augmentation_space(10, (size, size)), {("Identity", 0.0): 0}

        def number_of(name: str, step: int | None, sign: float) -> int:
            values, signed = space[name]
            magnitude = float(values[step]) if step is not None else 0.0
            return numbers.setdefault((name, sign * magnitude if signed else magnitude), len(numbers))

        self.policies = [
            [(probability, number_of(name, step, 1), number_of(name, step, -1)) for name, probability, step in policy]
            for policy in library.policies
        ]
        self.operations, self.fill = list(numbers), [float(f) for f in fill]

    def draw(self, rng: random.Random) -> tuple[int, int]:
        """Return the numbers of two operations."""
        policy = self.policies[rng.randrange(len(self.policies))]
        draws = [(rng.random(), rng.random() < 0.5) for _ in policy]
        first, second = (
            (minus if negative else plus) if chance <= probability else 0
            for (probability, plus, minus), (chance, negative) in zip(policy, draws, strict=True)
        )
        return first, second

    def apply(self, image: T, number: int) -> T:
        """Return RGB images after an operation: one of PIL's, or a tensor uint8 ``[..., 3, S, S]`` on any device."""
        name, magnitude = self.operations[number]
        if name == "Equalize":  # the other one waits for the device three times an image
            return equalize(image)
        return tv._apply_op(image, name, magnitude, InterpolationMode.BILINEAR, self.fill)
