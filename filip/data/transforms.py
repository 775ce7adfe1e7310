"""Images to tensors: random resized crop, flip and AutoAugment for training; resize and centre crop else.

Every random choice comes from the generator that the caller passes, never from a global one, so that an
augmented image is a function of (image, seed) alone.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import autoaugment as tv

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_FILL = tuple(round(255 * m) for m in CLIP_MEAN)  # becomes 0 after normalisation


def open_image(data: bytes) -> Image.Image:
    """Open encoded bytes without decoding them yet. Raises OSError (or ValueError) if they are no image."""
    return Image.open(io.BytesIO(data))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode as RGB: transparency onto white, 16 bit down to 8, palettes and CMYK converted."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def normalize(pixels: np.ndarray | Tensor) -> Tensor:
    """uint8 ``[..., H, W, 3]`` to float32 ``[..., 3, H, W]`` with CLIP's mean and standard deviation."""
    values = torch.as_tensor(pixels).movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format)
    mean = 255 * torch.tensor(CLIP_MEAN).view(3, 1, 1)
    std = 255 * torch.tensor(CLIP_STD).view(3, 1, 1)
    return values.sub_(mean).div_(std)


def denormalize(pixels: Tensor) -> np.ndarray:
    """The inverse of :func:`normalize`, rounded: what to show in a picture."""
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    values = (pixels.detach().float().cpu() * std + mean) * 255
    return values.round().clamp(0, 255).to(torch.uint8).movedim(-3, -1).numpy()


class AutoAugment:
    """torchvision's AutoAugment (ImageNet policy) with an explicit generator.

    Policies, magnitudes and operations are torchvision's own; only where the random numbers come from
    differs, and that the table of magnitudes is made once instead of once per image.
    """

    def __init__(self, size: int, fill: Sequence[int] = _FILL) -> None:
        library = tv.AutoAugment(tv.AutoAugmentPolicy.IMAGENET)
        space = library._augmentation_space(10, (size, size))
        self.policies = library.policies
        self.magnitudes = {name: (values.tolist(), signed) for name, (values, signed) in space.items()}
        self.fill = [float(f) for f in fill]

    def __call__(self, image: Image.Image, rng: random.Random) -> Image.Image:
        policy = self.policies[rng.randrange(len(self.policies))]
        draws = [(rng.random(), rng.random() < 0.5) for _ in policy]
        for (name, probability, step), (chance, negative) in zip(policy, draws, strict=True):
            if chance > probability:
                continue
            values, signed = self.magnitudes[name]
            magnitude = float(values[step]) if step is not None else 0.0
            image = tv._apply_op(
                image,
                name,
                -magnitude if signed and negative else magnitude,
                InterpolationMode.BILINEAR,
                self.fill,
            )
        return image


class TrainTransform:
    """Random resized crop, horizontal flip, optionally AutoAugment on the crop; CLIP's normalisation.

    ``crop_scale`` is the range of the crop's share of the area, ``crop_ratio`` of width / height (paper:
    open).
    """

    def __init__(
        self,
        image_size: int,
        auto_augment: bool,
        crop_scale: tuple[float, float] = (0.5, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ) -> None:
        self.image_size = image_size
        self.auto_augment = AutoAugment(image_size) if auto_augment else None
        self.crop_scale, self.crop_ratio, self.flip = crop_scale, crop_ratio, flip

    def __call__(self, image: Image.Image, seed: int | None = None) -> Tensor:
        """float32 ``[3, S, S]``; the same for the same seed (none: drawn from torch's global generator)."""
        seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
        return normalize(self.pixels(image, random.Random(seed)))

    def pixels(self, image: Image.Image, rng: random.Random) -> np.ndarray:
        """uint8 ``[S, S, 3]``, not normalised. A JPEG not yet decoded is scaled down while decoding."""
        left, top, width, height = self._crop(image.width, image.height, rng)
        flip = rng.random() < self.flip
        whole = image.size
        if image.format == "JPEG":
            # Decode at 1/2, 1/4 or 1/8 if the crop keeps at least the pixels that the output needs.
            shrink = min(width, height) / self.image_size
            image.draft(None, (math.ceil(whole[0] / shrink), math.ceil(whole[1] / shrink)))
        image = to_rgb(image)
        sx, sy = image.width / whole[0], image.height / whole[1]
        box = (left * sx, top * sy, (left + width) * sx, (top + height) * sy)
        image = image.resize((self.image_size, self.image_size), Image.Resampling.BICUBIC, box=box)
        if flip:
            image = ImageOps.mirror(image)
        if self.auto_augment is not None:
            image = self.auto_augment(image, rng)
        return np.asarray(image)

    def _crop(self, width: int, height: int, rng: random.Random) -> tuple[int, int, int, int]:
        """torchvision's RandomResizedCrop.get_params: left, top, width, height."""
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


class EvalTransform:
    """Shorter side to ``image_size`` (bicubic), centre crop, CLIP's normalisation; no randomness."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size

    def __call__(self, image: Image.Image) -> Tensor:
        """float32 ``[3, S, S]``."""
        return normalize(self.pixels(image))

    def pixels(self, image: Image.Image, rng: random.Random | None = None) -> np.ndarray:
        """uint8 ``[S, S, 3]``, not normalised; the generator is not used."""
        size, image = self.image_size, to_rgb(image)
        width, height = image.size
        if width <= height:
            new = (size, int(size * height / width))
        else:
            new = (int(size * width / height), size)
        if new != image.size:
            image = image.resize(new, Image.Resampling.BICUBIC)
        left, top = round((new[0] - size) / 2), round((new[1] - size) / 2)
        return np.asarray(image.crop((left, top, left + size, top + size)))


def train_transform(image_size: int, auto_augment: bool, **options: object) -> TrainTransform:
    """A callable PIL image -> float32 ``[3, S, S]``; options as of :class:`TrainTransform`."""
    return TrainTransform(image_size, auto_augment, **options)  # type: ignore[arg-type]


def eval_transform(image_size: int) -> EvalTransform:
    """A callable PIL image -> float32 ``[3, S, S]``."""
    return EvalTransform(image_size)
