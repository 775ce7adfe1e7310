"""Models side by side: ``filip eval picture kind=compare models=[clip.safetensors,filip.safetensors] … out=P.png``.

The same images aligned with the same labels by each model, one model per column: what the token-wise loss does
to the patches. A pooled model's patches and words go through its projections, as in the alignment table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from filip.command import MISSING, option
from filip.data.preprocessing import denormalize
from filip.errors import UserError
from filip.eval.cards import load_card, match_classes
from filip.eval.encoders import load_encoder
from filip.eval.formats import open_set
from filip.eval.pictures.alignment import NOTE
from filip.eval.pictures.drawing import PictureOptions, alignment_cell, save_png, sheet
from filip.eval.pointing import composite, labelled, point
from filip.eval.prompts import alignment_template
from filip.eval.word_patch import alignment_prompt, word_patches


@dataclass
class Compare(PictureOptions):
    models: list[str] = option(MISSING, "two or more .safetensors files of ours, left to right")
    labels: list[str] = option([], "their titles; the files' names if empty")
    root: str = option(MISSING, "folder below which the test sets lie")
    card: str = option(MISSING, "benchmark card whose images are shown")
    prompts: str = option("eval/prompts.yaml", "prompt file, whose `alignment` entry is used, or one prompt")
    examples: int = option(6, "images, evenly spread over the set", at_least=0)
    composites: int = option(3, "pictures of two objects side by side", at_least=0)
    loader: str | None = option(None, "layout of the card to use instead of its default")
    device: str = option("auto", "torch device; auto = a GPU where there is one")


def draw(config: Compare) -> None:
    """Draw the word-patch alignment of several models in columns."""
    if config.labels and len(config.labels) != len(config.models):
        raise UserError(f"{len(config.labels)} labels for {len(config.models)} models: give one each, or none")
    card = load_card(config.card, config.loader)
    data = open_set(card, config.root)
    names = match_classes(card, data.classes) if data.classes is not None else None
    prompt = alignment_prompt(alignment_template(config.prompts, card.name))
    items = labelled(data, names, config.examples + 2 * config.composites)
    encoders = [load_encoder(model, None, config.device) for model in config.models]
    titles = config.labels or [Path(model).stem for model in config.models]
    cells = []
    for item in items[: config.examples]:
        for encoder, title in zip(encoders, titles, strict=True):
            pixels = encoder.transform(item.image)
            found = word_patches(encoder, pixels.unsqueeze(0), [item.label], prompt)[0]
            cells.append(alignment_cell(_seen(pixels), found, f"{title}: {item.label}", 300))
    rest = items[config.examples :]
    for left, right in zip(rest[::2], rest[1::2], strict=False):
        page, prompts = composite(left, right)
        for encoder, title in zip(encoders, titles, strict=True):
            found = point(encoder, [page], [prompts])[0].alignment
            both = f"{title}: {page.captions[0]}"
            cells.append(alignment_cell(_seen(encoder.transform(page.image)), found, both, 300))
    columns = len(encoders) * max(1, 4 // len(encoders))  # whole comparisons in a row
    title = f"Word-patch alignment on {card.title}"
    save_png(sheet(cells, columns, title, NOTE, cell_width=300), config.out)


def _seen(pixels: Tensor) -> Image.Image:
    """Return the image as the model saw it."""
    return Image.fromarray(denormalize(pixels))
