"""Draw each patch's nearest token: ``filip eval picture kind=alignment model=M root=DIR data=[…] out=P.png``.

Draws, as the paper's Figure 3, the index of the most similar text token on each patch of some images: label tokens red
on opaque patches, others white on dimmed ones. With ``others=[…]`` several models align the same images side by side; a
pooled model's patches and words go through its projections. How often a label points at its object is measured by the
protocol ``alignment``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image

from filip.command import option
from filip.data.eval_transform import denormalize
from filip.errors import UserError
from filip.eval.cards import BenchmarkCard, match_classes
from filip.eval.encoders import Encoder
from filip.eval.families import PROMPTS
from filip.eval.formats import open_set
from filip.eval.options import DataOptions, ModelOptions
from filip.eval.pictures.drawing import PictureOptions, SheetCell, alignment_cell, save_png, sheet
from filip.eval.pointing import composite, labelled, point
from filip.eval.prompts import alignment_template
from filip.eval.word_patch import WordPatch, alignment_prompt, word_patches

WIDTH = 320  # of a picture, in pixels
NOTE = (
    "The number on a patch is the position of the text token it is most similar to (0 = [BOS]). "
    "Red on an opaque patch: a token of the label. White on a dimmed patch: any other token."
)


@dataclass
class AlignmentSheet(PictureOptions, DataOptions, ModelOptions):
    others: list[str] = option([], "further models, drawn next to the first")
    labels: list[str] = option([], "names of the models in the titles; the model files' names if empty")
    prompts: str = option(PROMPTS, "prompt file, whose `alignment` entry is used, or one prompt")
    examples: int = option(12, "pictures per card, evenly spread over the set", at_least=0)
    composites: int = option(4, "pictures of two objects side by side", at_least=0)
    measure: int = option(2000, "images per card to choose those two from, evenly spread", at_least=0)
    columns: int = option(4, "pictures per row", at_least=1)


def draw(config: AlignmentSheet) -> None:
    """Draw which word each image patch looks at."""
    models = [replace(config, model=model) for model in (config.model, *config.others)]
    if config.labels and len(config.labels) != len(models):
        raise UserError(f"{len(config.labels)} labels for {len(models)} models: give one each, or none")
    labels = config.labels or [model.run_name() for model in models]
    cards, skipped = config.load()
    encoders = dict(zip(labels, (model.encoder() for model in models), strict=True))
    cells = [cell for card in cards for cell in _cells(encoders, card, config)]
    where = ", ".join(card.title for card in cards) or f"nothing: {', '.join(skipped)} left out"
    title = f"Word-patch alignment: {', '.join(labels)} on {where}"
    columns = len(models) * max(1, config.columns // len(models))  # whole comparisons in a row
    save_png(sheet(cells, columns, title, NOTE, cell_width=WIDTH), config.out)


def _cells(encoders: dict[str, Encoder], card: BenchmarkCard, config: AlignmentSheet) -> Iterator[SheetCell]:
    """Yield the examples of a card, then its composites, each by every model."""
    data = open_set(card, config.root)
    names = match_classes(card, data.classes) if data.classes is not None else None
    prompt = alignment_prompt(alignment_template(config.prompts, card.name))

    def cell(name: str, image: Image.Image, found: WordPatch, text: str) -> SheetCell:
        seen = Image.fromarray(denormalize(encoders[name].transform(image)))  # as the model saw it
        return alignment_cell(seen, found, f"{name}: {text}" if len(encoders) > 1 else text, WIDTH)

    for item in labelled(data, names, config.examples):
        for name, encoder in encoders.items():
            pixels = encoder.transform(item.image).unsqueeze(0)
            yield cell(name, item.image, word_patches(encoder, pixels, [item.label], prompt)[0], item.label)
    with_mask = []
    if config.composites:
        with_mask = [item for item in labelled(data, names, config.measure) if item.mask is not None]
    for number in range(config.composites if len(with_mask) > 1 else 0):
        step = max(1, len(with_mask) // (2 * config.composites))
        left, right = (with_mask[place * step % len(with_mask)] for place in (2 * number, 2 * number + 1))
        page, prompts = composite(left, right)
        for name, encoder in encoders.items():
            yield cell(name, page.image, point(encoder, [page], [prompts])[0].alignment, page.captions[0])
