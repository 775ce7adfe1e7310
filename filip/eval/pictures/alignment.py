"""Draw each patch's nearest token: ``filip eval picture kind=alignment model=M root=DIR data=[…] out=P.png``.

Draws, as the paper's Figure 3, the index of the most similar text token on each patch of some images: label tokens red
on opaque patches, others white on dimmed ones. With ``others=[…]`` several models align the same images side by side; a
pooled model's patches and words go through its projections. The protocol ``scene_pointing`` measures how often a
name points at its thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image

from filip.cli.command import option
from filip.common.errors import UserError
from filip.common.progress import say
from filip.eval.cards import BenchmarkCard, match_classes
from filip.eval.encoders import Encoder
from filip.eval.families import PROMPTS
from filip.eval.formats import open_set
from filip.eval.options import DataOptions, ModelOptions, check_sets
from filip.eval.pictures.drawing import MUTED, RED, PictureOptions, SheetCell, draw_alignment, save_png, sheet
from filip.eval.prompts import alignment_prompt
from filip.eval.word_patch import word_patches
from filip.images.eval_transform import denormalize

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
    columns: int = option(4, "pictures per row", at_least=1)


def draw(config: AlignmentSheet) -> None:
    """Draw which word each image patch looks at."""
    models = [replace(config, model=model) for model in (config.model, *config.others)]
    labels = config.labels or [model.run_name() for model in models]
    if not len(models) == len(labels) == len(set(labels)):
        raise UserError(f"{', '.join(labels)}: {len(models)} models need as many different names; give them by labels=")
    cards = config.cards()
    there, skipped = check_sets(cards, config.root, config.missing)
    cards = [card for card in cards if card.name in there]
    encoders = dict(zip(labels, (model.encoder() for model in models), strict=True))
    cells = [cell for card in cards for cell in _cells(encoders, card, config)]
    where = ", ".join(card.title for card in cards) or f"nothing: {', '.join(skipped)} left out"
    title = f"Word-patch alignment: {', '.join(labels)} on {where}"
    columns = len(models) * max(1, config.columns // len(models))  # whole comparisons in a row
    save_png(sheet(cells, columns, title, NOTE, cell_width=WIDTH), config.out)


def _cells(encoders: dict[str, Encoder], card: BenchmarkCard, config: AlignmentSheet) -> Iterator[SheetCell]:
    """Yield the examples of a card, each by every model."""
    data = open_set(card, config.root)
    names = match_classes(card, data.classes) if data.classes is not None else None
    prompt = alignment_prompt(config.prompts, card.name)
    for number in range(min(config.examples, len(data))):
        sample, problem = data.read(number * len(data) // min(config.examples, len(data)))
        if sample is None:
            say(f"left out an unreadable image, {problem}")
            continue
        label = names[sample.label] if names is not None else sample.captions[0]
        for name, encoder in encoders.items():
            pixels = encoder.transform(sample.image)
            result = word_patches(encoder, pixels.unsqueeze(0), [label], prompt)[0]
            seen = Image.fromarray(denormalize(pixels))  # as the model saw it
            words = [(f"{i} {token}", RED if i in result.label else MUTED) for i, token in enumerate(result.tokens)]
            picture = draw_alignment(seen, result, max(14, WIDTH // result.grid[1]))
            yield SheetCell(picture, f"{name}: {label}" if len(encoders) > 1 else label, words)
