"""Convert any picture to 8-bit RGB on white: shared by download and loader, without torch."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from threading import Lock
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from filip.common.errors import UserError, plain

# The formats that Pillow may open from other people: pictures on the web. Its other 30 are code that hostile
# bytes need not reach (EPS starts Ghostscript).
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
IMAGE_FILES: tuple[str, ...] = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif",
)  # fmt: skip
_HEIC_FILES = (".heic", ".heif", ".hif")  # the format in which phones write


def _reads_heic() -> bool:
    """Return whether pillow-heif is installed, and if so make it known to Pillow."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


if _reads_heic():
    FORMATS, IMAGE_FILES = (*FORMATS, "HEIF"), (*IMAGE_FILES, *_HEIC_FILES)
# Also pictures by their names, but nothing here reads them: they are counted, so that they are not missing unnoticed.
OTHER_PICTURES = tuple(
    suffix
    for suffix in (
        *_HEIC_FILES,
        ".jxl", ".jp2", ".j2k", ".svg", ".svgz", ".psd", ".eps", ".ai", ".xcf", ".ico", ".tga", ".exr", ".hdr",
        ".raw", ".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".x3f",
    )
    if suffix not in IMAGE_FILES
)  # fmt: skip
ORIENTATION = ExifTags.Base.Orientation
SIDEWAYS = (5, 6, 7, 8)  # its values that exchange width and height
MAX_ASPECT = 50  # the shorter side becomes the model's: without a limit, a line of pixels becomes gigabytes
DRAFT_SIDE = 1024  # pixels of the shorter side that a draft keeps: more than any model takes
# The errors that Pillow raises for broken files; they have no common base class.
UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError)
_OPENING = Lock()  # Pillow's limit is a global variable
STRIP = 256  # rows at a time, if a step needs a multiple of the picture's memory


def not_read(paths: Iterable[Path]) -> str:
    """Return how many files look like pictures of formats that are not read here, and a remedy; "" if none."""
    counts = Counter(path.suffix.lower() for path in paths if path.suffix.lower() in OTHER_PICTURES)
    if not counts:
        return ""
    listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
    heic = "; `pip install pillow-heif` reads those of phones" if set(_HEIC_FILES) & counts.keys() else ""
    return f"{listed} (these formats are not read{heic})"


def unreadable(path: str | PathLike[str], error: Exception) -> UserError:
    """Return the sentence for a file that Pillow cannot read, with what would read it."""
    if Path(path).suffix.lower() in OTHER_PICTURES:
        return UserError(f"{path} cannot be read as an image: {not_read([Path(path)])}")
    return UserError(f"{path} cannot be read as an image: {plain(error)}")


def upright(image: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF orientation says, as the download does; one that is upright is returned itself."""
    if image.getexif().get(ORIENTATION, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def upright_size(file: str | PathLike[str]) -> tuple[int, int]:
    """Return width and height of a picture as it is seen, from its header. Raises one of :data:`UNDECODABLE`."""
    with _opened(file) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(ORIENTATION) in SIDEWAYS else (width, height)


def upright_box(stored: Image.Image, box: tuple[float, ...]) -> tuple[float, ...]:
    """Return a box (left, top, right, bottom) of a stored picture in the pixels of the upright one."""
    turned, (left, top, right, bottom) = stored.getexif().get(ORIENTATION, 1), box
    if turned in (2, 3, 7, 8):
        left, right = stored.width - right, stored.width - left
    if turned in (3, 4, 6, 7):
        top, bottom = stored.height - bottom, stored.height - top
    return (top, left, bottom, right) if turned in SIDEWAYS else (left, top, right, bottom)


def read_rgb(file: str | PathLike[str] | IO[bytes], draft: bool = False) -> Image.Image:
    """Read a picture as models see it: upright, as 8-bit RGB on white. Raises one of :data:`UNDECODABLE`.

    One that is more than 50 times as long as wide is refused. draft: a JPEG of many pixels is decoded at a half, a
    quarter or an eighth of its size, down to 1,024 pixels of its shorter side, in a fraction of the time.
    """
    image = _opened(file)
    if max(image.size) > MAX_ASPECT * min(image.size):
        size = f"{image.width} x {image.height} pixels"
        raise ValueError(f"the image has {size}: too long and narrow for a model's square")
    if draft:
        image.draft(None, (DRAFT_SIDE, DRAFT_SIDE))
    image.load()  # and let go of the file
    return to_rgb(upright(image))


def _opened(file: str | PathLike[str] | IO[bytes]) -> Image.Image:
    """Open a picture of any number of pixels: Pillow's own limit warns of 90 million, and a telephone takes 200."""
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # type: ignore[assignment]
        try:
            return Image.open(file, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any PIL mode to RGB: transparency onto white, 16 or 32 bits and floats to 8, palettes and CMYK too."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return Image.fromarray(_high_bytes(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_bytes_of_floats(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB")


def _high_bytes(values: np.ndarray) -> np.ndarray:
    """Return deep grey (any integers) as uint8, as everybody shows it; PIL's convert() would clip at 255."""
    shift = 8 if values.max(initial=0) < 1 << 16 else 24
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), STRIP):
        grey[top : top + STRIP] = (values[top : top + STRIP].astype(np.int64) >> shift).clip(0, 255)
    return grey


def _bytes_of_floats(values: np.ndarray) -> np.ndarray:
    """Return grey in floating point as uint8: of 0 to 1, as most programs write it, or else of 8 or 16 bits."""
    top = float(np.nanmax(values, initial=0, where=np.isfinite(values)))
    scale = 255.0 if top <= 1 else 1.0 if top <= 255 else 255 / 65535 if top <= 65535 else 255 / top
    grey = np.empty(values.shape, np.uint8)
    for first in range(0, len(values), STRIP):
        strip = np.nan_to_num(values[first : first + STRIP].astype(np.float64), posinf=top, neginf=0)
        grey[first : first + STRIP] = (strip * scale).round().clip(0, 255)
    return grey


def _on_white(rgba: Image.Image) -> Image.Image:
    plain = Image.new("RGB", rgba.size)
    for top in range(0, rgba.height, STRIP):
        strip = rgba.crop((0, top, rgba.width, min(top + STRIP, rgba.height)))
        white = Image.new("RGBA", strip.size, (255, 255, 255, 255))
        plain.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return plain
