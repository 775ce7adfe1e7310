"""Apply image rules and repairs, before img2dataset decodes an image with OpenCV.

OpenCV takes a truncated JPEG (and greys out the rest), allocates whatever a PNG header promises, ignores the EXIF
orientation, and turns 16-bit images white when it writes JPEG. So the header is read first: rules that need
only the size are applied without decoding, files that end early are refused, and the few images that OpenCV gets wrong
are normalised by Pillow to plain 8-bit RGB.
"""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from typing import Any

import cv2
import numpy as np
from img2dataset.resizer import Resizer
from PIL import Image, UnidentifiedImageError

from filip.rgb import FORMATS, ORIENTATION, STRIP, to_rgb, upright

MAX_PIXELS = 100_000_000  # Pillow warns from about this number on, and refuses twice as many
OPENCV_READS = {"JPEG", "PNG", "WEBP", "BMP"}
PLAIN_MODES = {"L", "RGB", "RGBA"}


class CheckedResizer(Resizer):
    """img2dataset's resizer behind :func:`inspect`; errors are ``"reason: detail"``."""

    def __call__(self, img_stream: io.BytesIO, blurring_bbox_list: Any = None) -> tuple[Any, ...]:
        """Turn an image's bytes into (encoded, width, height, original width and height, error or None), in pixels."""
        problem, repaired = inspect(img_stream.getvalue(), self.min_image_size, self.max_aspect_ratio)
        if problem:
            return None, None, None, None, None, problem
        data = _blended(img_stream.getvalue()) if repaired is None else repaired
        result = super().__call__(io.BytesIO(data), blurring_bbox_list)
        error = result[-1]
        return result if error is None else (*result[:-1], f"undecodable: {' '.join(str(error).split())[:200]}")


def inspect(data: bytes, min_side: float, max_aspect: float) -> tuple[str | None, bytes | None]:
    """Return why an image is dropped ("reason: detail") or None, and its repaired form if it needs one.

    min_side: minimum shorter side in pixels. max_aspect: maximum longer / shorter side; either drops it.
    """
    if not data:
        return "not_an_image: empty body", None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        return f"too_many_pixels: {error}", None
    except UnidentifiedImageError:
        return f"not_an_image: starts with {data[:16]!r}", None
    except Exception as error:  # a header that looks like an image but is broken
        return f"undecodable: {error}", None
    width, height = image.size
    if min(width, height) < max(1, min_side):
        return f"too_small: {width} x {height}", None
    if max(width, height) > max_aspect * min(width, height):
        return f"aspect: {width} x {height}", None
    if width * height > MAX_PIXELS:
        return f"too_many_pixels: {width} x {height}", None
    try:
        if not ends_properly(data, image.format or ""):
            image.load()  # the final word on whether something is missing
        return (None, _plain(image)) if _needs_repair(image, data) else (None, None)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ...
        detail = " ".join(str(error).split())[:200]
        return (f"truncated: {detail}" if "truncated" in detail.lower() else f"undecodable: {detail}"), None


def ends_properly(data: bytes, kind: str) -> bool:
    """Return whether the bytes end as a complete file of that kind does; False if that is unknown."""
    if kind == "JPEG":
        return data[-64:].rstrip(b"\0\r\n ").endswith(b"\xff\xd9")
    if kind == "PNG":
        return b"IEND\xaeB`\x82" in data[-1024:]
    if kind == "WEBP":
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return False


def _needs_repair(image: Image.Image, data: bytes) -> bool:
    if image.format not in OPENCV_READS or image.mode not in PLAIN_MODES:
        return True
    if image.format == "PNG":
        # getexif() would decode the whole picture to look for a chunk that hardly any PNG has
        deep = data[24:25] == b"\x10"
        return deep or (b"eXIf" in data and image.getexif().get(ORIENTATION, 1) != 1)
    return image.getexif().get(ORIENTATION, 1) != 1


def _may_have_alpha(data: bytes) -> bool:
    if data[:4] == b"\x89PNG":
        return data[25:26] in (b"\4", b"\6") or b"tRNS" in data[: max(0, data.find(b"IDAT"))]
    return data[:4] == b"RIFF" and data[12:16] != b"VP8 "


def _blended(data: bytes) -> bytes:
    """Return a picture with an alpha channel on white, as a bitmap; others as they are.

    It blends as img2dataset does, to the bit, but in strips: in one piece it takes 76 bytes a pixel, 7.6 GB for the
    largest picture allowed.
    """
    if not _may_have_alpha(data):
        return data
    with suppress(cv2.error):
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if decoded is not None and decoded.ndim == 3 and decoded.shape[2] == 4:
            plain = np.empty((*decoded.shape[:2], 3), np.uint8)
            for top in range(0, len(decoded), STRIP):
                strip = decoded[top : top + STRIP]
                alpha = strip[:, :, 3:]
                plain[top : top + STRIP] = np.rint((alpha / 255 * strip[..., :3] + 255 - alpha).clip(min=0, max=255))
            del decoded
            return cv2.imencode(".bmp", plain)[1].tobytes()
    return data


def _plain(image: Image.Image) -> bytes:
    """Return the first frame as an upright 8-bit RGB bitmap on white."""
    out = io.BytesIO()
    to_rgb(upright(image)).save(out, "BMP")
    return out.getvalue()
