"""Word-patch alignment: how often a label points at its object.

A label points at the patch that is most similar to any of its tokens; see :mod:`filip.eval.pointing`. The paper shows
pictures (``filip eval picture``); these are numbers for them, of images with an object mask: single ones, and two side
by side with a text that names both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from filip import citations
from filip.command import option
from filip.eval.cards import KINDS, BenchmarkCard, match_classes
from filip.eval.encode_set import Context
from filip.eval.encoders import Encoder
from filip.eval.formats import open_set
from filip.eval.outcomes import Record
from filip.eval.pointing import POOLED, composite_pointing, labelled, pointing
from filip.eval.prompts import Prompt, alignment_template
from filip.eval.protocols import Column, Numbers, Protocol, ReportTable
from filip.eval.word_patch import alignment_prompt


@dataclass
class AlignmentSettings:
    measure: int = option(2000, "images per card to measure pointing on, evenly spread", at_least=0)
    pairs: int = option(300, "composites to measure pointing on", at_least=0)


def run(
    encoder: Encoder, card: BenchmarkCard, settings: AlignmentSettings, context: Context, record: Record
) -> Numbers:
    data = open_set(card, context.root)
    names = match_classes(card, data.classes) if data.classes is not None else None
    items = labelled(data, names, settings.measure, kept_patches(encoder, card, context))
    prompt = prompt_of(card, settings, context)
    return {
        "prompt": prompt.fill("{c}"),
        "pointing": pointing(encoder, items, prompt, record=record, name=card.name),
        "composites": composite_pointing(encoder, items, settings.pairs, record=record, name=card.name),
    }


def prompt_of(card: BenchmarkCard, settings: AlignmentSettings, context: Context) -> Prompt:
    return alignment_prompt(alignment_template(context.prompts, card.name))


def kept_patches(encoder: Encoder, card: BenchmarkCard, context: Context) -> Callable[[int, str], Tensor | None]:
    """Return a finder of kept patches by an image's number in the set and its key: [rows * columns, d] float32.

    There are none for a pooled model, of which vectors are kept, nor in 16 bits, which would move the result a little.
    """
    rows, columns = encoder.grid
    store = context.store
    if store is None or not encoder.token_wise or encoder.dtype != torch.float32 or not rows:
        return lambda number, key: None
    stored = store.of_set(card, context.root, context.batch_size)

    @lru_cache(maxsize=1)  # images are asked for in order
    def patches_by_key(batch: int) -> dict[str, Tensor]:
        stored_features = stored.get(batch, "image")
        if stored_features is None:
            return {}
        features, about = stored_features
        # [CLS], if there is one, is first
        return dict(zip(about.keys, features[:, -rows * columns :], strict=True))

    return lambda number, key: patches_by_key(number // context.batch_size).get(key)


PROTOCOL = Protocol(
    "alignment",
    tuple(KINDS),
    run,
    AlignmentSettings,
    ReportTable(
        "Word-patch alignment: pointing accuracy (%)",
        (
            Column(
                "label on its object",
                "pointing_value",
                "pointing.value",
                "pointing.chance",
                "pointing.ci95",
                outcome=".pointing/right",
                headline=True,
            ),
            Column(
                "of two, on its own",
                "composites_value",
                "composites.value",
                "composites.chance",
                "composites.ci95",
                "composites.n",
                outcome=".composites/right",
                headline=True,
            ),
            Column(
                "of two, own side",
                "composites_own_side",
                "composites.own_side",
                "composites.own_side_chance",
                "composites.own_side_ci95",
                "composites.n",
                outcome=".composites/own_side",
                headline=True,
            ),
        ),
        ("The mask is the drawing's own. Two: two images side by side with a text that names both.", POOLED),
    ),
    note="The patch most similar to any token of the label lies on the object.",
    prepare=prompt_of,
    size="pointing.n",
    on_request=True,
    reads_prompts=True,
    on_patches=True,
    citation=(citations.FILIP, citations.EXCITATION_BACKPROP),
)
