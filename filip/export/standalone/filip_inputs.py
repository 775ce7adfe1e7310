"""Prepare pixels and texts as FILIP's evaluation does, without PyTorch."""

from __future__ import annotations

import html

import ftfy
import numpy as np
from PIL import ExifTags, Image, ImageOps

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32).reshape(3, 1, 1)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32).reshape(3, 1, 1)


def clean(text: str) -> str:
    """Clean a caption as CLIP does before its BPE."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def to_pixels(image: Image.Image, size: int) -> np.ndarray:
    """Return float32 ``[3, size, size]``: shorter side to ``size`` (bicubic), centre crop, CLIP's normalisation.

    Raises ValueError for a picture that is more than 50 times as long as wide: resized, it would fill the memory.
    """
    width, height = image.size
    if max(width, height) > 50 * min(width, height):
        raise ValueError(f"the image has {width} x {height} pixels: too long and narrow for a model's square")
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    image = _rgb(ImageOps.exif_transpose(image) if turned else image)
    width, height = image.size
    new = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    if new != image.size:
        image = image.resize(new, Image.Resampling.BICUBIC)
    left, top = round((new[0] - size) / 2), round((new[1] - size) / 2)
    planes = np.asarray(image.crop((left, top, left + size, top + size)), np.float32).transpose(2, 0, 1)
    return planes * (np.float32(1 / 255) / STD) - MEAN / STD


def _rgb(image: Image.Image) -> Image.Image:
    """Return RGB: transparency onto white, 16 (or 32) bits down to 8, palettes and CMYK converted."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        shift = 8 if values.max(initial=0) < 1 << 16 else 24
        return Image.fromarray((values >> shift).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
