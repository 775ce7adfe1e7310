"""Word-patch alignment: ``python -m filip.eval.alignment model=M root=DIR cards=[…] picture=P.png out=F.json``.

Draws, as the paper's Figure 3, the index of the most similar text token on each patch of some images (label
tokens red on opaque patches, others white on dimmed ones), and measures on all images with an object mask how
often the label points at its object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from torch import Tensor

from filip import resources
from filip.command import MISSING, option, run_command
from filip.data.preprocessing import denormalize
from filip.errors import UserError
from filip.eval.cards import BenchmarkCard, match_classes
from filip.eval.datasets import EvalSet
from filip.eval.encoders import Encoder
from filip.eval.features import FeatureStore
from filip.eval.formats import open_set
from filip.eval.options import FEATURES_GB, CardOptions, skipped_entry, store_of
from filip.eval.outcomes import Record, write_outcomes
from filip.eval.pictures import Cell, alignment_cell, sheet
from filip.eval.pointing import Labelled, aligned, composite_alignment, composite_pointing, pointing
from filip.eval.word_patch import alignment_prompt
from filip.files import write_json
from filip.progress import say

NOTE = (
    "The number on a patch is the position of the text token it is most similar to (0 = [BOS]). "
    "Red on an opaque patch: a token of the label. White on a dimmed patch: any other token."
)


@dataclass
class Alignment(CardOptions):
    picture: str = option(MISSING, "the sheet of pictures (PNG)", writes="file")
    prompts: str = option("eval/prompts.yaml", "prompt file; its `alignment` entry is used")
    prompt: str | None = option(None, "prompt with {c} for the label, instead of the prompt file's")
    examples: int = option(12, "pictures per card, evenly spread over the set", at_least=0)
    composites: int = option(4, "pictures of two objects side by side", at_least=0)
    measure: int = option(2000, "images per card to measure pointing on, evenly spread", at_least=0)
    pairs: int = option(300, "composites to measure pointing on", at_least=0)
    columns: int = option(4, "pictures per row", at_least=1)
    features: str = option(
        "",
        "folder where retrieval or zero-shot kept image features (features=): tokens there are not encoded again",
    )
    batch_size: int = option(64, "images at a time, as those features were kept", at_least=1)


def main(config: Alignment) -> None:
    """Draw and measure which word each image patch looks at."""
    if not config.cards:
        raise UserError("cards=[]: give at least one card whose images are to be aligned")
    cards, skipped = config.load_cards()
    encoder = config.encoder()
    store = store_of(config, encoder, config.features, FEATURES_GB)  # which is only read
    header = config.result_header(encoder)
    cells: list[Cell] = []
    results: dict[str, Any] = {}
    record: Record = {}
    for card in cards:
        found, pictures = _align_card(encoder, card, config, record, store)
        results[card.name] = found
        cells += pictures
    where = ", ".join(card.title for card in cards) or f"nothing: {', '.join(skipped)} left out"
    title = f"Word-patch alignment: {header['run']} on {where}"
    page = sheet(cells, config.columns, title, NOTE)
    Path(config.picture).parent.mkdir(parents=True, exist_ok=True)
    page.save(config.picture)
    write_outcomes(config.out, record)
    write_json(
        config.out, {**header, "picture": config.picture, "benchmarks": results, **skipped_entry(skipped)}
    )


def _align_card(
    encoder: Encoder, card: BenchmarkCard, config: Alignment, record: Record, store: FeatureStore | None
) -> tuple[dict[str, Any], list[Cell]]:
    data = open_set(card, config.root)
    text = config.prompt or prompt_text(config.prompts, card.name)
    prompt = alignment_prompt(text)
    names = match_classes(card, data.classes) if data.classes is not None else None
    kept = kept_patches(encoder, store, card, config)
    cells, examples = [], []
    for item in labelled(data, names, config.examples, kept):
        pixels = encoder.transform(item.image)
        found = aligned(encoder, [item], prompt)[0]
        cells.append(alignment_cell(Image.fromarray(denormalize(pixels)), found, item.label, 320))
        examples.append(
            {
                "key": item.key,
                "label": item.label,
                "tokens": found.tokens,
                "label_tokens": found.label,
                "indices": found.indices.tolist(),
            }
        )
    measured = labelled(data, names, config.measure, kept)
    result: dict[str, Any] = {
        "prompt": text,
        "pointing": pointing(encoder, measured, prompt, record=record, name=card.name),
    }
    result["composites"] = composite_pointing(encoder, measured, config.pairs, record=record, name=card.name)
    with_mask = [item for item in measured if item.mask is not None]
    for number in range(config.composites if len(with_mask) > 1 else 0):
        step = max(1, len(with_mask) // (2 * config.composites))
        left, right = (
            with_mask[2 * number * step % len(with_mask)],
            with_mask[(2 * number + 1) * step % len(with_mask)],
        )
        page, found, _ = composite_alignment(encoder, left, right)
        cells.append(alignment_cell(page, found, f"{left.label} and {right.label}", 320))
    for measure in ("pointing", "composites"):
        if result[measure]["n"]:
            say(
                f"{card.name}: {measure} {100 * result[measure]['value']:.1f} % of {result[measure]['n']:,} "
                f"(chance {100 * result[measure]['chance']:.1f} %)"
            )
    return {**result, "examples": examples}, cells


def kept_patches(
    encoder: Encoder, store: FeatureStore | None, card: BenchmarkCard, config: Alignment
) -> Callable[[int, str], Tensor | None]:
    """Finds the patches that were kept of an image, by its number in the set and its key: [rows * columns, d] float32.

    There are none of a pooled model, of which vectors are kept, nor in 16 bits, which would move the result a little.
    """
    rows, columns = encoder.grid
    if store is None or not encoder.token_wise or encoder.dtype != torch.float32 or not rows:
        return lambda number, key: None
    kept = store.of_set(card, config.root, config.batch_size)

    @lru_cache(maxsize=1)  # images are asked for in order
    def patches_by_key(batch: int) -> dict[str, Tensor]:
        found = kept.get(batch, "image")
        if found is None:
            return {}
        features, about = found
        return dict(
            zip(about.keys, features[:, -rows * columns :], strict=True)
        )  # [CLS], if there is one, is first

    return lambda number, key: patches_by_key(number // config.batch_size).get(key)


def labelled(
    data: EvalSet,
    names: list[str] | None,
    limit: int,
    kept: Callable[[int, str], Tensor | None] | None = None,
) -> list[Labelled]:
    """Up to ``limit`` samples evenly spread over the set; the label is the class or the first caption.

    kept: see :func:`kept_patches`.
    """
    count = min(limit, len(data))
    chosen = [number * len(data) // count for number in range(count)]
    items = []
    for index in chosen:
        sample = data[index]
        label = names[sample.label] if names is not None else sample.captions[0]
        patches = None if kept is None else kept(index, sample.key)
        items.append(Labelled(sample.image, label, sample.mask, sample.key, patches))
    return items


def prompt_text(prompts: str, card: str) -> str:
    """The alignment prompt of a card, or the file's default."""
    content = yaml.safe_load(resources.find("prompts", prompts).read_text(encoding="utf-8")) or {}
    entries = content.get("alignment", {})
    return str(entries.get(card, entries.get("default", "a photo of a {c}.")))


if __name__ == "__main__":
    run_command(main, Alignment)
