"""Render SVG drawings to PNG files, on all cores."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import resvg_py
from PIL import Image

from filip.common.files import naming
from filip.common.progress import track
from filip.images.rgb import to_rgb
from filip_demo.catalogue import Drawing

SIDE = 96  # pixels
OPAQUE = 128  # from this alpha on, a pixel belongs to the thing


@dataclass(frozen=True)
class Rendering:
    """A drawing to render, into up to three files. ``svg`` is a whole document."""

    svg: str
    image: str | None = None  # RGB, on white
    mask: str | None = None  # the mask of its object: 0 or 255
    sprite: str | None = None  # RGBA, cut out along the outermost visible pixels

    @property
    def missing(self) -> list[str]:
        return [path for path in (self.image, self.mask, self.sprite) if path and not is_written(path)]


def svg_document(drawing: Drawing) -> str:
    left, top, width, height = drawing.box
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left:g} {top:g} {width:g} {height:g}" width="{SIDE}" height="{SIDE}">{drawing.body}</svg>'
    )


def render_all(jobs: Iterable[Rendering], processes: int, name: str) -> int:
    """Render missing drawings and return the number of drawings rendered."""
    todo = [job for job in jobs if job.missing]
    if not todo:
        return 0
    with ProcessPoolExecutor(processes) as pool:
        made = pool.map(render, todo, chunksize=32)
        for _ in track(made, f"rendering {name}", "images", total=len(todo)):
            pass
    return len(todo)


def render(job: Rendering) -> None:
    """Write the files of the job. A drawing without a visible pixel gets an empty file as its sprite."""
    # Drawings hold no text: without the system's fonts the result is the same on every machine.
    drawn = resvg_py.svg_to_bytes(svg_string=job.svg, width=SIDE, height=SIDE, skip_system_fonts=True)
    image = Image.open(io.BytesIO(drawn)).convert("RGBA")
    visible = image.getchannel("A").point(lambda alpha: 255 if alpha >= OPAQUE else 0)
    if job.mask:
        write_atomically(job.mask, png_bytes(visible))
    if job.sprite:
        box = visible.getbbox()
        write_atomically(job.sprite, png_bytes(image.crop(box)) if box else b"")
    if job.image:
        write_atomically(job.image, png_bytes(to_rgb(image)))


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # three times as fast as the default, a tenth larger
    return buffer.getvalue()


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write a file completely or not at all: a build that was killed continues where it stopped.

    It may reach the disk later: waiting for each of tens of thousands of files would be slow. ``corpus.json`` is
    written when all are on the disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with naming(path):
        part.write_bytes(data)
        os.replace(part, path)


def is_written(path: str | Path) -> bool:
    """Return whether a file is there with content: after a power cut it may be empty."""
    try:
        return os.stat(path).st_size > 0
    except FileNotFoundError:
        return False
