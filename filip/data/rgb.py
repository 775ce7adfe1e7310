"""Any picture as 8-bit RGB on white: shared by download and loader, without torch."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image

# What Pillow may open of other people's: what pictures on the web are. Its other 30 formats are code that hostile bytes
# need not reach (EPS starts Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
# What Pillow raises for broken files; it has no common base class.
UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
STRIP = 256  # rows at a time, where a step needs a multiple of the picture's memory


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode as RGB: transparency onto white, 16 (or 32) bits down to 8, palettes and CMYK converted."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return Image.fromarray(_high_bytes(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB")


def _high_bytes(values: np.ndarray) -> np.ndarray:
    """Deep grey (any integers) as uint8, as everybody shows it; PIL's convert() would clip at 255."""
    shift = 8 if values.max(initial=0) < 1 << 16 else 24
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), STRIP):
        grey[top : top + STRIP] = (values[top : top + STRIP].astype(np.int64) >> shift).clip(0, 255)
    return grey


def _on_white(rgba: Image.Image) -> Image.Image:
    plain = Image.new("RGB", rgba.size)
    for top in range(0, rgba.height, STRIP):
        strip = rgba.crop((0, top, rgba.width, min(top + STRIP, rgba.height)))
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        plain.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return plain
