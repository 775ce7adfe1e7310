"""Does a model look where the thing is? The pointing game, for scenes, labelled images and composites of two.

A text names things, and a mask says where each is. A name *points* at the patch that is most similar to any of its
tokens, and is right if that patch belongs to its thing. The paper shows pictures; this is a number for them. Chance is
the share of patches that are right.

In a scene of several things the caption names each once, and a patch belongs to the thing that covers most of it, or to
the background. A labelled image is a scene of one thing, whose text is the label in a prompt; a composite shows two of
them side by side, and its text names both: does each name find its own object? There a patch belongs to an object that
covers half of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from filip.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.datasets import EvalSet, Sample, Thing
from filip.eval.encoders import Encoder
from filip.eval.metrics import mean_interval
from filip.eval.outcomes import Outcomes, Record
from filip.eval.prompts import Prompt
from filip.eval.word_patch import WordPatch, label_tokens
from filip.progress import Progress, say

POOLED = "A pooled model's patches and words go through its projections, which were trained on one vector each."
BACKGROUND = -1


@dataclass
class Labelled:
    """An image, the thing on it, and where (mode L, 0 or 255, the image's size; None if unknown).

    patches: unit vectors [rows * columns, d] float32 that an earlier evaluation kept of the image; None: encode it.
    """

    image: Image.Image
    label: str
    mask: Image.Image | None
    key: str = ""
    patches: Tensor | None = None


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


def by_most(shares: np.ndarray) -> np.ndarray:
    """Return the owner of each patch [rows, columns]: what covers most of it. shares: [things, rows, columns]."""
    return np.where(shares.max(0) > 1 - shares.sum(0), shares.argmax(0), BACKGROUND)


def by_half(shares: np.ndarray) -> np.ndarray:
    """Return the owner of each patch [rows, columns]: the thing that covers at least half of it."""
    return np.where(shares.max(0) >= 0.5, shares.argmax(0), BACKGROUND)


def point(
    encoder: Encoder,
    samples: Sequence[Sample],
    prompts: Sequence[Sequence[Prompt]] | None = None,
    owners: Callable[[np.ndarray], np.ndarray] = by_most,
    patches: Tensor | None = None,
) -> list[PointedScene]:
    """Align scenes with their captions.

    prompts: the text around the name of each thing; None: it is looked for in the caption, and UserError if it is not
    there. patches: the images' [b, rows * columns, d] that were kept; None: encode them.
    """
    if patches is None:
        patches = encoder.patches(torch.stack([encoder.transform(sample.image) for sample in samples]))
    if prompts is None:
        prompts = [
            name_prompts(sample.captions[0], [thing.label for thing in sample.things], sample.key) for sample in samples
        ]
    words = encoder.words([sample.captions[0] for sample in samples])
    return [
        _pointed(encoder, sample, around, owners, image @ text.T)
        for sample, around, image, text in zip(samples, prompts, patches, words, strict=True)
    ]


def _pointed(
    encoder: Encoder,
    sample: Sample,
    prompts: Sequence[Prompt],
    owners: Callable[[np.ndarray], np.ndarray],
    similarity: Tensor,
) -> PointedScene:
    names = [label_tokens(encoder, prompt, thing.label) for prompt, thing in zip(prompts, sample.things, strict=True)]
    tokens = sorted(token for name in names for token in name)
    alignment = WordPatch(similarity, encoder.tokens(sample.captions[0]), tokens, encoder.grid)
    shares = np.stack([coverage(thing.mask, encoder.transform, encoder.grid) for thing in sample.things])
    return PointedScene(sample, alignment, names, owners(shares))


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


def _nothing(reason: str) -> dict[str, Any]:
    return {"n": 0, "value": None, "chance": None, "ci95": None, "reason": reason}


def labelled(
    data: EvalSet, names: list[str] | None, limit: int, kept: Callable[[int, str], Tensor | None] | None = None
) -> list[Labelled]:
    """Return up to ``limit`` samples evenly spread over the set; the label is the class or the first caption.

    An image that cannot be read is left out, and named; UserError if none can. kept: finds the patches that were kept
    of an image, by its number in the set and its key.
    """
    count = min(limit, len(data))
    chosen = [number * len(data) // count for number in range(count)]
    items = []
    for index in chosen:
        sample, problem = data.read(index)
        if sample is None:
            say(f"left out an unreadable image, {problem}")
            continue
        label = names[sample.label] if names is not None else sample.captions[0]
        patches = None if kept is None else kept(index, sample.key)
        shown = sample.mask
        mask = None if shown is None else Thing(label, shown, file=f"the mask of {sample.key}").mask
        items.append(Labelled(sample.image, label, mask, sample.key, patches))
    if not items:
        raise UserError("the test set has no readable image")
    return items


def pointing(
    encoder: Encoder,
    items: Sequence[Labelled],
    prompt: Prompt,
    batch: int = 64,
    record: Record | None = None,
    name: str = "",
) -> dict[str, Any]:
    """Measure pointing accuracy over images that have a mask (fractions, with chance and a 95 % interval).

    The outcome of each image is put into ``record`` as ``<name>.pointing``.

    Also ``hit_precision``, the share of patches aligned with a label token that are on the object, and
    ``hit_recall``, the share of the object's patches that are so aligned.
    """
    scenes: list[PointedScene] = []
    for start in range(0, len(items), batch):
        part = [item for item in items[start : start + batch] if item.mask is not None]
        samples = [
            Sample(i.key, i.image, captions=[prompt.fill(i.label)], things=[Thing(i.label, i.mask)])
            for i in part
            if i.mask is not None
        ]
        stored = [item.patches for item in part if item.patches is not None]
        patches = torch.stack(stored) if stored and len(stored) == len(part) else None
        points = point(encoder, samples, [[prompt]] * len(part), by_half, patches) if part else []
        scenes += (scene for scene in points if scene.counted)
    if not scenes:
        return _nothing("no image of the set has a mask")
    right = [scene.right[0] for scene in scenes]
    if record is not None:
        record[f"{name}.pointing"] = Outcomes.of([scene.sample.key for scene in scenes], {"right": right})
    hits = [scene.alignment.hits for scene in scenes]
    on_object = [(hit & (scene.owner == 0)).sum() for hit, scene in zip(hits, scenes, strict=True)]
    precision = [on / hit.sum() for on, hit in zip(on_object, hits, strict=True) if hit.any()]
    recall = [on / (scene.owner == 0).sum() for on, scene in zip(on_object, scenes, strict=True)]
    return {
        "n": len(right),
        **rate(right, [scene.chance()[0] for scene in scenes]),
        "hit_precision": float(np.mean(precision)) if precision else None,
        "hit_recall": float(np.mean(recall)),
    }


def composite(left: Labelled, right: Labelled, swapped: bool = False) -> tuple[Sample, list[Prompt]]:
    """Put two images side by side at half size on white, with the text "LEFT and RIGHT".

    swapped: the text is "RIGHT and LEFT". Also return the text around each label.
    """
    side = max(left.image.size + right.image.size)
    page, things = Image.new("RGB", (side, side), "white"), []
    for number, item in enumerate((left, right)):
        place = (number * side // 2, side // 4)
        page.paste(item.image.resize((side // 2, side // 2), Image.Resampling.LANCZOS), place)
        mask = Image.new("L", (side, side), 0)
        own = item.mask or Image.new("L", item.image.size, 255)
        mask.paste(own.resize((side // 2, side // 2), Image.Resampling.BILINEAR), place)
        things.append(Thing(item.label, mask))
    first, second = (right, left) if swapped else (left, right)
    around = [Prompt("", f" and {second.label}"), Prompt(f"{first.label} and ", "")]
    caption = around[0].fill(first.label)
    sample = Sample(f"{left.key} {right.key}", page, captions=[caption], things=things)
    return sample, around[::-1] if swapped else around


def composite_pointing(
    encoder: Encoder,
    items: Sequence[Labelled],
    pairs: int = 300,
    seed: int = 0,
    record: Record | None = None,
    name: str = "",
) -> dict[str, Any]:
    """Measure pointing accuracy on composites of random pairs with different labels.

    The outcome of each label is put into ``record`` as ``<name>.composites``, the labels of a pair as one cluster.

    ``value``: a label's best patch is on its own object (chance: the fraction of patches that do).
    ``own_side``: it is in its own object's half. The text names the left object first in every second pair, the
    right one in the others: a model that sends the first name to the left, whatever it sees, gets one half.
    """
    usable = [item for item in items if item.mask is not None]
    rng = np.random.default_rng(seed)
    right: list[bool] = []
    side: list[bool] = []
    chance: list[float] = []
    cluster: list[int] = []
    keys: list[str] = []
    for number in range(pairs if len({item.label for item in usable}) > 1 else 0):
        first, second = (usable[i] for i in rng.choice(len(usable), 2, replace=False))
        if first.label == second.label:
            continue
        sample, prompts = composite(first, second, swapped=bool(number % 2))
        (scene,) = point(encoder, [sample], [prompts], by_half)
        keys += [f"{number} {sample.key} {half}" for half in scene.counted]
        right += scene.right
        side += [(scene.best[half][1] >= scene.owner.shape[1] / 2) == bool(half) for half in scene.counted]
        chance += scene.chance()
        cluster += [number] * len(scene.counted)
    if not right:
        return _nothing("needs two labels with masks")
    if record is not None:
        record[f"{name}.composites"] = Outcomes.of(keys, {"right": right, "own_side": side}, [str(c) for c in cluster])
    own_side = rate(side, [0.5], cluster)
    return {
        "n": len(right),
        "pairs": len(set(cluster)),
        **rate(right, chance, cluster),
        "own_side": own_side["value"],
        "own_side_ci95": own_side["ci95"],
        "own_side_chance": own_side["chance"],
    }
