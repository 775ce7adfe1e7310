"""Does a model look where the thing is? The pointing game, for scenes of things of which a mask shows the place.

A caption names each thing once. A name *points* at the patch that is most similar to any of its tokens, and is right if
that patch belongs to its thing: the thing that covers most of it, or the background. Chance is the share of patches
that are right. An image with the mask of its object alone is a scene of one thing, which its caption or class names.
The paper shows pictures; this is a number for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from filip.common.errors import UserError
from filip.common.progress import Progress
from filip.eval.cards import BenchmarkCard
from filip.eval.datasets import EvalSet, Sample, Thing
from filip.eval.encoders import Encoder
from filip.eval.metrics import mean_interval
from filip.eval.word_patch import Prompt, WordPatch, label_tokens

POOLED = "A pooled model's patches and words go through its projections, which were trained on one vector each."
BACKGROUND = -1


@dataclass(frozen=True)
class PointedScene:
    """A scene, its alignment and where each name points.

    names: token positions of each thing's name. owner: [rows, columns] int, the thing that a patch belongs to or
    BACKGROUND.
    """

    sample: Sample
    alignment: WordPatch
    names: list[list[int]]
    owner: np.ndarray

    @property
    def best(self) -> list[tuple[int, int]]:
        """Return for each thing the (row, column) that its name points at."""
        places = [int(self.alignment.heat(name).argmax()) if name else 0 for name in self.names]
        return [divmod(place, self.owner.shape[1]) for place in places]

    @property
    def counted(self) -> list[int]:
        """Return the things that can be pointed at: they have a patch, and the tokenizer leaves some of their name."""
        return [n for n, tokens in enumerate(self.names) if tokens and (self.owner == n).any()]

    @property
    def right(self) -> list[bool]:
        """Return for each counted thing whether its name points at it."""
        best = self.best
        return [bool(self.owner[best[n]] == n) for n in self.counted]

    def right_among_things(self) -> list[bool]:
        """Return ``right`` with the background's patches left out."""
        right = []
        for n in self.counted:
            heat = np.where(self.owner == BACKGROUND, -np.inf, self.alignment.heat(self.names[n]))
            right.append(bool(self.owner.flat[heat.argmax()] == n))
        return right

    def chance(self, of: int | None = None) -> list[float]:
        """Return for each counted thing its share of the ``of`` patches (None: of all)."""
        return [(self.owner == n).sum() / (of or self.owner.size) for n in self.counted]

    @property
    def score(self) -> float:
        """Return the share of the counted names that point at their thing; nan if there is none."""
        return float(np.mean(self.right)) if self.counted else float("nan")


def point(encoder: Encoder, samples: Sequence[Sample]) -> list[PointedScene]:
    """Align scenes with their captions. Raises UserError if a caption does not name one of the things."""
    patches = encoder.patches(torch.stack([encoder.transform(sample.image) for sample in samples]))
    words = encoder.words([sample.captions[0] for sample in samples])
    scenes = []
    for sample, image, text in zip(samples, patches, words, strict=True):
        prompts = name_prompts(sample.captions[0], [thing.label for thing in sample.things], sample.key)
        named = zip(prompts, sample.things, strict=True)
        names = [label_tokens(encoder, prompt, thing.label) for prompt, thing in named]
        tokens = sorted(token for name in names for token in name)
        alignment = WordPatch(image @ text.T, encoder.tokens(sample.captions[0]), tokens, encoder.grid)
        shares = np.stack([coverage(thing.mask, encoder.transform, encoder.grid) for thing in sample.things])
        # a patch belongs to what covers most of it
        owner = np.where(shares.max(0) > 1 - shares.sum(0), shares.argmax(0), BACKGROUND)
        scenes.append(PointedScene(sample, alignment, names, owner))
    return scenes


def pointed_scenes(
    encoder: Encoder, card: BenchmarkCard, data: EvalSet, count: int | None = None, batch: int = 64
) -> Iterator[PointedScene]:
    """Point at the first ``count`` scenes of a set (None: all). UserError if one lacks the places of its things."""
    total = len(data) if count is None else min(count, len(data))
    with Progress(card.name, "scenes", total) as progress:
        for start in range(0, total, batch):
            samples = [_scene(card, data, index) for index in range(start, min(start + batch, total))]
            yield from point(encoder, samples)
            progress.add(len(samples))


def _scene(card: BenchmarkCard, data: EvalSet, index: int) -> Sample:
    sample = data.needed(index)
    if not sample.things and sample.mask is not None:
        name = sample.captions[0] if data.classes is None else data.classes[sample.label]
        thing = Thing(name, sample.mask, file=f"{sample.key}.mask.png of {card.name}")
        sample = replace(sample, captions=[name], things=[thing])
    if not sample.things:
        raise UserError(
            f"{card.name}: image {sample.key} does not say where its things are (.things.png and .json, or .mask.png)"
        )
    return sample


def name_prompts(caption: str, labels: Sequence[str], key: str = "") -> list[Prompt]:
    """Return the text before and after each label in the caption; "dog" is not looked for in "hot dog".

    Raises UserError if a label is not there.
    """
    taken: list[tuple[int, int]] = []
    places: dict[str, tuple[int, int]] = {}
    for label in sorted(labels, key=len, reverse=True):
        for match in re.finditer(rf"(?<!\w){re.escape(label)}(?!\w)", caption):
            if all(match.end() <= start or end <= match.start() for start, end in taken):
                places[label] = match.span()
                taken.append(match.span())
                break
        else:
            raise UserError(f"scene {key}: the caption {caption!r} does not name {label!r}")
    return [Prompt(caption[: places[label][0]], caption[places[label][1] :]) for label in labels]


def coverage(mask: Image.Image, transform: Callable[[Image.Image], Tensor], grid: tuple[int, int]) -> np.ndarray:
    """Return [rows, columns]: the share of each patch that is on the object, after the image's own transform.

    The mask goes through the transform as if it were the image, whatever that resizes or crops; its
    normalisation is undone by comparing with what black and white become. Borders, where both are the same, are on
    nothing.
    """
    black, white = (_transformed(transform, mask.size, colour) for colour in ("black", "white"))
    span = (white - black).amax((1, 2), keepdim=True)
    seen = ((transform(mask.convert("RGB")) - black) / span).mean(0).clamp(0, 1)
    rows, columns = grid
    height, width = seen.shape[0] // rows, seen.shape[1] // columns
    seen = seen[: rows * height, : columns * width]
    return seen.view(rows, height, columns, width).mean((1, 3)).numpy()


@lru_cache(maxsize=8)
def _transformed(transform: Callable[[Image.Image], Tensor], size: tuple[int, int], colour: str) -> Tensor:
    return transform(Image.new("RGB", size, colour))


def rate(right: Sequence[bool], chance: Sequence[float], clusters: Sequence[Any] | None = None) -> dict[str, Any]:
    """Return how many names are right, by chance, and a 95 % interval; names of one cluster are not independent."""
    groups = None if clusters is None else np.unique(clusters, return_inverse=True)[1]
    return {
        "value": float(np.mean(right)),
        "chance": float(np.mean(chance)),
        "ci95": list(mean_interval(np.array(right, float), clusters=groups)),
    }
