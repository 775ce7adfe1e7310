"""Draw each patch's nearest token: ``filip eval picture kind=alignment model=M root=DIR data=[…] out=P.png``.

Draws, as the paper's Figure 3, the index of the most similar text token on each patch of some images: label tokens red
on opaque patches, others white on dimmed ones. How often a label points at its object is measured by the protocol
``alignment``.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from filip.command import option
from filip.data.preprocessing import denormalize
from filip.eval.cards import BenchmarkCard, match_classes
from filip.eval.encoders import Encoder
from filip.eval.families import PROMPTS
from filip.eval.formats import open_set
from filip.eval.options import DataOptions, ModelOptions
from filip.eval.pictures.drawing import PictureOptions, SheetCell, alignment_cell, save_png, sheet
from filip.eval.pointing import composite, labelled, point
from filip.eval.prompts import alignment_template
from filip.eval.word_patch import alignment_prompt, word_patches

NOTE = (
    "The number on a patch is the position of the text token it is most similar to (0 = [BOS]). "
    "Red on an opaque patch: a token of the label. White on a dimmed patch: any other token."
)


@dataclass
class AlignmentSheet(PictureOptions, DataOptions, ModelOptions):
    run: str = option("", "name of the model in the title; the model file's name if empty")
    prompts: str = option(PROMPTS, "prompt file, whose `alignment` entry is used, or one prompt")
    examples: int = option(12, "pictures per card, evenly spread over the set", at_least=0)
    composites: int = option(4, "pictures of two objects side by side", at_least=0)
    measure: int = option(2000, "images per card to choose those two from, evenly spread", at_least=0)
    columns: int = option(4, "pictures per row", at_least=1)


def draw(config: AlignmentSheet) -> None:
    """Draw which word each image patch looks at."""
    cards, skipped = config.load()
    encoder = config.encoder()
    cells = [cell for card in cards for cell in _cells(encoder, card, config)]
    where = ", ".join(card.title for card in cards) or f"nothing: {', '.join(skipped)} left out"
    title = f"Word-patch alignment: {config.run_name(config.run)} on {where}"
    save_png(sheet(cells, config.columns, title, NOTE), config.out)


def _cells(encoder: Encoder, card: BenchmarkCard, config: AlignmentSheet) -> list[SheetCell]:
    """Return the examples of a card, then its composites."""
    data = open_set(card, config.root)
    names = match_classes(card, data.classes) if data.classes is not None else None
    prompt = alignment_prompt(alignment_template(config.prompts, card.name))
    cells = []
    for item in labelled(data, names, config.examples):
        pixels = encoder.transform(item.image)
        found = word_patches(encoder, pixels.unsqueeze(0), [item.label], prompt)[0]
        cells.append(alignment_cell(Image.fromarray(denormalize(pixels)), found, item.label, 320))
    if not config.composites:
        return cells
    with_mask = [item for item in labelled(data, names, config.measure) if item.mask is not None]
    for number in range(config.composites if len(with_mask) > 1 else 0):
        step = max(1, len(with_mask) // (2 * config.composites))
        left = with_mask[2 * number * step % len(with_mask)]
        right = with_mask[(2 * number + 1) * step % len(with_mask)]
        page, prompts = composite(left, right)
        found = point(encoder, [page], [prompts])[0].alignment
        cells.append(alignment_cell(page.image, found, page.captions[0], 320))
    return cells
