"""Write the sprites of ``records/speedrun.py``: one artist's drawings of single things, small, in grey and alpha.

    python -m filip_demo.sprites out=records/speedrun.npz

``names`` [n] str, one word each and no colour; ``pixels`` [n, 24, 24, 2] uint8, luminance and alpha. The speedrun tints
them and composes scenes.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from filip.cli.command import option, run_command
from filip.common.files import naming
from filip.common.progress import say, track
from filip_demo.catalogue import Catalogue, Drawing
from filip_demo.packages import ARTISTS, fetch_packages
from filip_demo.render import svg_document
from filip_demo.scenes import in_scenes

SIDE = 24  # pixels
COLOURS = ("orange",)  # names that the speedrun's captions use as colours
ARTIST = "noto"  # its licence, Apache-2.0, allows the drawings in this repository


@dataclass
class Sprites:
    out: str = option("records/speedrun.npz", "file that will hold the sprites", writes="file")
    cache: str = option(".cache/demo", "folder where the npm packages are kept")


def main(config: Sprites) -> None:
    """Draw the things that scenes may show, 24 pixels wide, in grey and alpha."""
    chosen = things_to_tint(Catalogue(fetch_packages(config.cache)))
    names = list(chosen)
    drawn = []
    for name in track(names, "drawing sprites", "sprites"):
        svg = svg_document(chosen[name])
        png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, skip_system_fonts=True)
        drawn.append(np.asarray(Image.open(io.BytesIO(png)).convert("LA")))
    pixels = np.stack(drawn)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, names=np.array(names), pixels=pixels)
    with naming(config.out):
        Path(config.out).write_bytes(buffer.getvalue())
    say(f"{config.out}: {len(names)} sprites of {ARTIST}, SHA-256 {hashlib.sha256(buffer.getvalue()).hexdigest()}")


def things_to_tint(catalogue: Catalogue) -> dict[str, Drawing]:
    """Return one artist's drawings of things with a name of one word that is no colour, in the order of the names."""
    artist = next(artist for artist in ARTISTS if artist.key == ARTIST)
    drawings = catalogue.drawings(artist)
    chosen = {d.emoji.label.lower(): d for d in drawings if not d.emoji.tones and in_scenes(d.emoji)}
    return {name: chosen[name] for name in sorted(chosen) if name.isalpha() and name not in COLOURS}


if __name__ == "__main__":
    run_command(main, Sprites)
