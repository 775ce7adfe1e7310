"""Decode images to RGB arrays, fast for what shards hold and forgiving for what the web holds.

A whole JPEG or 8-bit RGB PNG goes through torchvision's decoder (the same pixels as PIL's in two thirds of the
time); everything else (palettes, transparency, CMYK, 16 bit, damaged headers) goes through PIL.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

from filip.rgb import FORMATS, to_rgb

_PNG = b"\x89PNG\r\n\x1a\n"
_WORTH_A_DRAFT = 16384  # bytes; for smaller files, decoding at full size costs less than looking first


def decode(data: bytes) -> np.ndarray:
    """Return uint8 ``[H, W, 3]`` of an encoded image; raise one of ``rgb.UNDECODABLE``."""
    if data.startswith(b"\xff\xd8"):
        kind = decode_jpeg
    elif data.startswith(_PNG) and data[24:26] == b"\x08\x02" and b"tRNS" not in data[:1024]:  # 8 bit, RGB
        kind = decode_png
    else:
        return np.array(to_rgb(Image.open(io.BytesIO(data), formats=FORMATS)))
    try:
        image = kind(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.UNCHANGED)
    except RuntimeError:
        image = None
    if image is None or image.shape[0] != 3:
        return np.array(to_rgb(Image.open(io.BytesIO(data), formats=FORMATS)))
    return image.permute(1, 2, 0).numpy()


def open_draft(data: bytes) -> Image.Image | None:
    """Return a large JPEG, opened but not decoded, for callers that may need fewer pixels than it has; else None."""
    if len(data) < _WORTH_A_DRAFT or not data.startswith(b"\xff\xd8"):
        return None
    return Image.open(io.BytesIO(data), formats=FORMATS)
