"""Scenes of several things, and where a model's names of them point.

A scene shows several things, its caption names each once, and a mask says where each is. A name points at the patch
that is most similar to any of its tokens. A patch belongs to the thing that covers most of it, or to the background.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from filip.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.datasets import EvalSet, Sample
from filip.eval.encoders import Encoder
from filip.eval.pointing import coverage
from filip.eval.prompts import Prompt
from filip.eval.word_patch import WordPatch, label_tokens
from filip.progress import Progress

BACKGROUND = -1


@dataclass(frozen=True)
class PointedScene:
    """A scene, its alignment and where each name points.

    names: token positions of each thing's name. owner: [rows, columns] int, the thing that a patch belongs to or
    BACKGROUND. best: for each thing the (row, column) that its name points at.
    """

    sample: Sample
    alignment: WordPatch
    names: list[list[int]]
    owner: np.ndarray
    best: list[tuple[int, int]]

    @property
    def counted(self) -> list[int]:
        """Return the things that can be pointed at: they have a patch, and the tokenizer leaves some of their name."""
        return [n for n, tokens in enumerate(self.names) if tokens and (self.owner == n).any()]

    @property
    def right(self) -> list[bool]:
        """Return for each counted thing whether its name points at it."""
        return [bool(self.owner[self.best[n]] == n) for n in self.counted]

    def right_among_things(self) -> list[bool]:
        """Return ``right`` with the background's patches left out."""
        found = []
        for n in self.counted:
            heat = np.where(self.owner == BACKGROUND, -np.inf, self.alignment.heat(self.names[n]))
            found.append(bool(self.owner.flat[heat.argmax()] == n))
        return found

    @property
    def score(self) -> float:
        """Return the share of the counted names that point at their thing; nan if there is none."""
        return float(np.mean(self.right)) if self.counted else float("nan")


def point(encoder: Encoder, samples: Sequence[Sample]) -> list[PointedScene]:
    """Align scenes with their captions. Raises UserError if a caption does not name each of its things."""
    patches = encoder.patches(torch.stack([encoder.transform(sample.image) for sample in samples]))
    words = encoder.words([sample.captions[0] for sample in samples])
    return [
        _pointed(encoder, sample, image @ text.T)
        for sample, image, text in zip(samples, patches, words, strict=True)
    ]


def _pointed(encoder: Encoder, sample: Sample, similarity: Tensor) -> PointedScene:
    caption = sample.captions[0]
    prompts = name_prompts(caption, [thing.label for thing in sample.things], sample.key)
    names = [
        label_tokens(encoder, prompt, thing.label)
        for prompt, thing in zip(prompts, sample.things, strict=True)
    ]
    tokens = sorted(token for name in names for token in name)
    alignment = WordPatch(similarity, encoder.tokens(caption), tokens, encoder.grid)
    shares = np.stack([coverage(thing.mask, encoder.transform, encoder.grid) for thing in sample.things])
    owner = np.where(shares.max(0) > 1 - shares.sum(0), shares.argmax(0), BACKGROUND)
    best = []
    for name in names:
        place = int(alignment.heat(name).argmax()) if name else 0
        best.append((place // encoder.grid[1], place % encoder.grid[1]))
    return PointedScene(sample, alignment, names, owner, best)


def pointed_scenes(
    encoder: Encoder, card: BenchmarkCard, data: EvalSet, count: int | None = None, batch: int = 64
) -> Iterator[PointedScene]:
    """Point at the first ``count`` scenes of a set (None: all). UserError if one lacks the places of its things."""
    total = len(data) if count is None else min(count, len(data))
    with Progress(card.name, "scenes", total) as progress:
        for start in range(0, total, batch):
            samples = [data.needed(index) for index in range(start, min(start + batch, total))]
            for sample in samples:
                if not sample.things:
                    raise UserError(
                        f"{card.name}: image {sample.key} does not say where its things are (.things.png and .json)"
                    )
            yield from point(encoder, samples)
            progress.add(len(samples))


def name_prompts(caption: str, labels: Sequence[str], key: str = "") -> list[Prompt]:
    """Return what stands before and after each label in the caption; "dog" is not looked for in "hot dog".

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
