"""Any picture as 8-bit RGB on white: shared by download and loader, without torch."""

from __future__ import annotations

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL mode as RGB: transparency onto white, 16 (or 32) bits down to 8, palettes and CMYK converted."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(
        "I"
    ):  # deep grey, which convert() would clip at 255: keep the high byte, as image viewers do
        values = np.asarray(image).astype(np.int64)
        shift = 8 if values.max(initial=0) < 1 << 16 else 24
        return Image.fromarray((values >> shift).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
