"""Apply image rules and repairs to an image, then resize and encode it with OpenCV.

OpenCV takes a truncated JPEG (and greys out the rest), allocates whatever a PNG header promises, ignores the EXIF
orientation, and turns 16-bit images white when it writes JPEG. So the header is read first: rules that need
only the size are applied without decoding, files that end early are refused, and the few images that OpenCV gets wrong
are normalised by Pillow to plain 8-bit RGB.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from filip.data.cards import DownloadSettings, ImageRuleSettings
from filip.images.rgb import FORMATS, ORIENTATION, STRIP, to_rgb, upright

MAX_PIXELS = 100_000_000  # Pillow warns from about this number on, and refuses twice as many
OPENCV_READS = {"JPEG", "PNG", "WEBP", "BMP"}
PLAIN_MODES = {"L", "RGB", "RGBA"}
QUALITY = {"jpg": cv2.IMWRITE_JPEG_QUALITY, "png": cv2.IMWRITE_PNG_COMPRESSION, "webp": cv2.IMWRITE_WEBP_QUALITY}


@dataclass
class CheckedResizer:
    """Resizer of the images that :func:`inspect` lets through; bytes as img2dataset's, errors are ``"reason: detail"``.

    ``stored`` and ``rules``: a card's ``download`` and ``image_rules``.
    """

    stored: DownloadSettings
    rules: ImageRuleSettings

    def __call__(self, img_stream: io.BytesIO) -> tuple[Any, ...]:
        """Turn an image's bytes into (encoded, width, height, original width and height, error or None), in pixels."""
        problem, repaired = inspect(img_stream.getvalue(), self.rules.min_side, self.rules.max_aspect)
        if problem:
            return None, None, None, None, None, problem
        try:
            data = img_stream.getvalue() if repaired is None else repaired
            with Image.open(io.BytesIO(data), formats=FORMATS) as header:
                width, height = header.size
                flag = self._flag(header)
            resized, kind = self._resized(_decoded(data, flag), (height, width)), self.stored.encode_format
            encoded = cv2.imencode(f".{kind}", resized, (QUALITY[kind], self.stored.quality))[1]
        except (cv2.error, ValueError) as error:
            detail = " ".join(str(error).split())[:200]
            return None, None, None, None, None, f"undecodable: {detail}"
        return encoded.tobytes(), *resized.shape[1::-1], width, height, None

    def _side(self, sides: tuple[int, int]) -> int:
        """Return the side that becomes the card's image_size."""
        return max(sides) if self.stored.resize_mode in ("border", "keep_ratio_largest") else min(sides)

    def _flag(self, header: Image.Image) -> int:
        """Return how OpenCV decodes an image: a JPEG at the least eighth, quarter or half that is large enough."""
        if header.format == "JPEG" and self.stored.resize_mode != "no" and not self.stored.full_decoding:
            kind = "GRAYSCALE" if header.mode == "L" else "COLOR"
            for part in (8, 4, 2):
                if self._side(header.size) >= part * self.stored.image_size:
                    return int(getattr(cv2, f"IMREAD_REDUCED_{kind}_{part}"))
        return cv2.IMREAD_UNCHANGED

    def _resized(self, pixels: Any, sides: tuple[int, int]) -> Any:
        """Resize decoded pixels; ``sides``: height and width of the whole image."""
        mode, size, side = self.stored.resize_mode, self.stored.image_size, self._side(sides)
        if mode == "no" or (self.stored.only_if_bigger and side <= size):
            return pixels
        height, width = (max(1, round(length * (size / side))) for length in sides)
        if (height, width) != pixels.shape[:2]:
            how = cv2.INTER_AREA if side > size else cv2.INTER_LANCZOS4
            pixels = cv2.resize(pixels, (width, height), interpolation=how)
        if mode == "center_crop":
            top, left = ((length - size) // 2 for length in (height, width))
            return pixels[top : top + size, left : left + size]
        if mode == "border":
            top, left = ((size - length) // 2 for length in (height, width))
            below, right = size - height - top, size - width - left
            return cv2.copyMakeBorder(pixels, top, below, left, right, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        return pixels


def _decoded(data: bytes, flag: int) -> Any:
    """Return the pixels of an image, uint8 [height, width] or [height, width, 3], an alpha channel on white.

    It blends as img2dataset does, to the bit, but in strips: in one piece it takes 76 bytes a pixel, 7.6 GB for the
    largest picture allowed. Raises ValueError or cv2.error.
    """
    cv2.setNumThreads(1)
    with _silent():
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    if decoded is None:
        raise ValueError("Image decoding error")
    if decoded.ndim == 2 or decoded.shape[2] != 4:
        return decoded
    plain = np.empty((*decoded.shape[:2], 3), np.uint8)
    for top in range(0, len(decoded), STRIP):
        strip = decoded[top : top + STRIP]
        alpha = strip[:, :, 3:]
        plain[top : top + STRIP] = np.rint((alpha / 255 * strip[..., :3] + 255 - alpha).clip(min=0, max=255))
    return plain


@contextmanager
def _silent() -> Iterator[None]:
    """Let no codec write to this process's stderr: libjpeg and libpng complain about images that they decode."""
    stderr, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nothing)


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


def _plain(image: Image.Image) -> bytes:
    """Return the first frame as an upright 8-bit RGB bitmap on white."""
    out = io.BytesIO()
    to_rgb(upright(image)).save(out, "BMP")
    return out.getvalue()
