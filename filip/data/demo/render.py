"""SVG drawings to PNG files, on all cores."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resvg_py
from PIL import Image

from filip.data.demo.catalogue import Drawing
from filip.files import replacing
from filip.progress import track

SIDE = 64  # pixels


@dataclass(frozen=True)
class Job:
    """One file to render. ``svg`` is a whole document, ``mask`` where the object's mask goes, if anywhere."""

    svg: str
    image: str
    mask: str | None = None


def svg_document(drawing: Drawing) -> str:
    left, top, width, height = drawing.box
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left:g} {top:g} {width:g} {height:g}" width="{SIDE}" height="{SIDE}">{drawing.body}</svg>'
    )


def render_all(jobs: Iterable[Job], processes: int, name: str) -> int:
    """Render what is not there yet and return how many were made."""
    todo = [job for job in jobs if not os.path.exists(job.image)]
    if not todo:
        return 0
    with ProcessPoolExecutor(processes) as pool:
        made = pool.map(render, todo, chunksize=32)
        for _ in track(made, f"rendering {name}", "images", total=len(todo)):
            pass
    return len(todo)


def render(job: Job) -> None:
    """Write ``job.image`` (on white, RGB) and, if wanted, the mask (0 or 255) made from the alpha channel."""
    # Drawings hold no text: without the system's fonts the result is the same on every machine.
    options: dict[str, Any] = {
        "svg_string": job.svg,
        "width": SIDE,
        "height": SIDE,
        "skip_system_fonts": True,
    }
    if job.mask is None:
        write_atomically(job.image, resvg_py.svg_to_bytes(**options, background="#ffffff"))
        return
    drawn = Image.open(io.BytesIO(resvg_py.svg_to_bytes(**options))).convert("RGBA")
    alpha = drawn.getchannel("A")
    write_atomically(job.mask, png_bytes(alpha.point(lambda a: 255 if a >= 128 else 0)))
    white = Image.new("RGBA", drawn.size, (255, 255, 255, 255))
    write_atomically(job.image, png_bytes(Image.alpha_composite(white, drawn).convert("RGB")))


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_atomically(path: str | Path, data: bytes) -> None:
    """A file is whole or not there: a build that was killed goes on where it stopped."""
    with replacing(path) as part:
        part.write_bytes(data)
