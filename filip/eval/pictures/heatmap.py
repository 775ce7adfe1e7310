"""Draw where each word looks: ``filip eval picture kind=heatmap model=M image=cat.jpg caption=… out=P.png``.

One heat map per token of any caption on any image, all on one scale, next to the word-patch alignment.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from filip.command import MISSING, option
from filip.data.eval_transform import denormalize
from filip.errors import UserError
from filip.eval.encoders import Encoder
from filip.eval.options import ModelOptions
from filip.eval.pictures.drawing import (
    MUTED,
    RED,
    PictureOptions,
    SheetCell,
    draw_alignment,
    draw_heat,
    save_png,
    sheet,
)
from filip.eval.prompts import Prompt
from filip.eval.word_patch import word_patches
from filip.files import nothing_at
from filip.progress import say
from filip.rgb import read_rgb, unreadable


@dataclass
class Heatmap(PictureOptions, ModelOptions):
    image: str = option(MISSING, "an image file")
    caption: str = option(MISSING, "any text")
    columns: int = option(4, "heat maps per row", at_least=1)
    width: int = option(240, "width of a heat map in px", at_least=16)


def draw(config: Heatmap) -> None:
    """Draw where each word of a caption looks in an image."""
    if Path(config.image).is_dir():
        raise UserError(f"image={config.image} is a folder: give one of the images in it")
    if not Path(config.image).is_file():
        raise UserError(nothing_at(config.image, "give an image file"))
    encoder = config.encoder()
    try:
        image = read_rgb(config.image)
    except OSError as error:
        raise unreadable(config.image, error) from error
    cells = heat_cells(encoder, image, config.caption, config.width)
    note = (
        "First: the position of the most similar token on each patch. Then, for each token, its similarity to each "
        "patch, from dark (the picture's lowest) to bright (its highest)."
    )
    page = sheet(cells, config.columns, f"{config.caption}", note, cell_width=config.width)
    save_png(page, config.out)
    say(f"{config.out}: {len(cells)} pictures of {config.image}")


def heat_cells(encoder: Encoder, image: Image.Image, caption: str, width: int) -> list[SheetCell]:
    """Return the alignment of an image with a caption, then one heat map per token, [BOS] and [EOS] last."""
    pixels = encoder.transform(image)
    patches = word_patches(encoder, pixels.unsqueeze(0), [caption], Prompt("", ""))[0]
    seen = Image.fromarray(denormalize(pixels))
    patch = max(12, width // patches.grid[1])
    low, high = (float(v) for v in np.percentile(patches.similarity.numpy(), [2, 99.5]))
    words = [(f"{i} {t}", RED if i in patches.label else MUTED) for i, t in enumerate(patches.tokens)]
    cells = [SheetCell(draw_alignment(seen, patches, patch), encoder.name, words)]
    last = len(patches.tokens) - 1
    for i in [*range(1, last), 0, last]:
        heat = patches.similarity[:, i].view(patches.grid).numpy()
        share = float((patches.indices == i).mean())
        below = [(f"best token of {100 * share:.0f} % of the patches", MUTED)]
        cells.append(SheetCell(draw_heat(seen, heat, low, high, patch), f"{i} {patches.tokens[i]}", below))
    return cells
