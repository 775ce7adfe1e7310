"""Does a model look where the thing is? Pointing accuracy of labels against object masks.

The paper shows pictures; this is a number for them. For a labelled image with a mask of its object, the label
*points* at the patch that is most similar to any of its tokens, and is right if at least half of that patch
lies on the object. Chance is the share of patches on the object. Composites, two labelled images side by side
and a text that names both, ask the harder question: does each name find its own object?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from filip.errors import UserError
from filip.eval.datasets import EvalSet
from filip.eval.encoders import Encoder
from filip.eval.metrics import mean_interval
from filip.eval.outcomes import Outcomes, Record
from filip.eval.prompts import Prompt
from filip.eval.word_patch import WordPatch, align, label_tokens, word_patches
from filip.progress import say


@dataclass
class Labelled:
    """An image, what is on it, and where (mode L, 0 or 255, the image's size; None if unknown).

    patches: unit vectors [rows * columns, d] float32 that an earlier evaluation kept of the image; None: encode it.
    """

    image: Image.Image
    label: str
    mask: Image.Image | None
    key: str = ""
    patches: Tensor | None = None


def labelled(
    data: EvalSet,
    names: list[str] | None,
    limit: int,
    kept: Callable[[int, str], Tensor | None] | None = None,
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
        items.append(Labelled(sample.image, label, sample.mask, sample.key, patches))
    if not items:
        raise UserError("the test set has no readable image")
    return items


def aligned(encoder: Encoder, items: Sequence[Labelled], prompt: Prompt) -> list[WordPatch]:
    """Align each image with its label in the prompt; nothing is encoded if the patches of all of them were
    kept."""
    labels = [item.label for item in items]
    kept = [item.patches for item in items if item.patches is not None]
    if len(kept) == len(items):
        return align(encoder, torch.stack(kept), labels, prompt)
    return word_patches(
        encoder, torch.stack([encoder.transform(item.image) for item in items]), labels, prompt
    )


def coverage(
    mask: Image.Image, transform: Callable[[Image.Image], Tensor], grid: tuple[int, int]
) -> np.ndarray:
    """Return [rows, columns]: the share of each patch that lies on the object, after the image's own transform.

    The mask goes through the transform as if it were the image, whatever that resizes or crops; its
    normalisation is undone by comparing with what black and white become. Borders, where both are the same, lie on
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

    Also ``hit_precision``, the share of patches aligned with a label token that lie on the object, and
    ``hit_recall``, the share of the object's patches that are so aligned.
    """
    right, chance, precision, recall = [], [], [], []
    keys: list[str] = []
    for start in range(0, len(items), batch):
        part = [item for item in items[start : start + batch] if item.mask is not None]
        if not part:
            continue
        for item, alignment in zip(part, aligned(encoder, part, prompt), strict=True):
            assert item.mask is not None
            on = coverage(item.mask, encoder.transform, alignment.grid) >= 0.5
            if not on.any() or not alignment.label:
                continue  # nothing to point at, or a label of which the tokenizer leaves nothing
            keys.append(item.key)
            right.append(bool(on.flat[alignment.heat().argmax()]))
            chance.append(on.mean())
            hits = alignment.hits
            precision.append((hits & on).sum() / hits.sum() if hits.any() else np.nan)
            recall.append((hits & on).sum() / on.sum())
    if not right:
        return {
            "n": 0,
            "value": None,
            "chance": None,
            "ci95": None,
            "reason": "no image of the set has a mask",
        }
    if record is not None:
        record[f"{name}.pointing"] = Outcomes.of(keys, {"right": right})
    return {
        "n": len(right),
        "value": float(np.mean(right)),
        "chance": float(np.mean(chance)),
        "ci95": list(mean_interval(np.array(right, float))),
        "hit_precision": None if np.isnan(precision).all() else float(np.nanmean(precision)),
        "hit_recall": float(np.mean(recall)),
    }


def composite(left: Labelled, right: Labelled) -> tuple[Image.Image, list[Image.Image]]:
    """Put two images side by side at half size on white; also return the mask of each in the result."""
    side = max(left.image.size + right.image.size)
    page = Image.new("RGB", (side, side), "white")
    masks = []
    for number, item in enumerate((left, right)):
        place = (number * side // 2, side // 4)
        page.paste(item.image.resize((side // 2, side // 2), Image.Resampling.LANCZOS), place)
        mask = Image.new("L", (side, side), 0)
        own = item.mask or Image.new("L", item.image.size, 255)
        mask.paste(own.resize((side // 2, side // 2), Image.Resampling.BILINEAR), place)
        masks.append(mask)
    return page, masks


def composite_alignment(
    encoder: Encoder, left: Labelled, right: Labelled, swapped: bool = False
) -> tuple[Image.Image, WordPatch, list[list[int]]]:
    """Return the picture of both, its alignment with "LEFT and RIGHT", and each label's token positions.

    swapped: the text is "RIGHT and LEFT".
    """
    page, _ = composite(left, right)
    if swapped:
        of_left, of_right = Prompt(f"{right.label} and ", ""), Prompt("", f" and {left.label}")
    else:
        of_left, of_right = Prompt("", f" and {right.label}"), Prompt(f"{left.label} and ", "")
    found = word_patches(encoder, encoder.transform(page).unsqueeze(0), [left.label], of_left)[0]
    names = [label_tokens(encoder, of_left, left.label), label_tokens(encoder, of_right, right.label)]
    found.label = names[0] + names[1]
    return page, found, names


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

    ``value``: a label's best patch lies on its own object (chance: the fraction of patches that do).
    ``own_side``: it lies in its own object's half. The text names the left object first in every second pair, the
    right one in the others: a model that sends the first name to the left, whatever it sees, gets one half.
    """
    usable = [item for item in items if item.mask is not None]
    rng = np.random.default_rng(seed)
    right, side, chance, cluster = [], [], [], []
    keys: list[str] = []
    for number in range(pairs if len({item.label for item in usable}) > 1 else 0):
        first, second = (usable[i] for i in rng.choice(len(usable), 2, replace=False))
        if first.label == second.label:
            continue
        _, masks = composite(first, second)
        _, found, names = composite_alignment(encoder, first, second, swapped=bool(number % 2))
        for half, (tokens, mask) in enumerate(zip(names, masks, strict=True)):
            on = coverage(mask, encoder.transform, found.grid) >= 0.5
            if not tokens or not on.any():
                continue
            best = int(found.heat(tokens).argmax())
            keys.append(f"{number} {first.key} {second.key} {half}")
            right.append(bool(on.flat[best]))
            side.append((best % found.grid[1] >= found.grid[1] / 2) == bool(half))
            chance.append(on.mean())
            cluster.append(number)
    if not right:
        return {"n": 0, "value": None, "chance": None, "ci95": None, "reason": "needs two labels with masks"}
    groups = np.array(cluster)
    if record is not None:
        found_all = {"right": right, "own_side": side}
        record[f"{name}.composites"] = Outcomes.of(keys, found_all, [str(c) for c in cluster])
    return {
        "n": len(right),
        "pairs": len(set(cluster)),
        "value": float(np.mean(right)),
        "chance": float(np.mean(chance)),
        "ci95": list(mean_interval(np.array(right, float), clusters=groups)),
        "own_side": float(np.mean(side)),
        "own_side_ci95": list(mean_interval(np.array(side, float), clusters=groups)),
        "own_side_chance": 0.5,
    }
