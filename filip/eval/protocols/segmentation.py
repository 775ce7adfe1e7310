"""Zero-shot segmentation.

Every patch takes its best class, and every pixel the class of its patch: mean intersection over union over the set,
and, as SPARC (Bica et al. 2024) has it, over the classes that each image has, from which its patches then choose. The
score of a class for a patch is the mean over the class's prompts: for a token-wise model of the patch's similarity to
its best token of the class's name, for a pooled one (through its own projections) of that to the prompt's vector.
Pixels are counted as the model sees the image, at its resolution and after its crop; those without a label are not.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from filip.common.errors import UserError
from filip.common.progress import Progress
from filip.eval.cards import BenchmarkCard
from filip.eval.datasets import Sample
from filip.eval.encode_set import Context, size_note
from filip.eval.encoders import Encoder
from filip.eval.formats import open_set
from filip.eval.metrics import mean_interval
from filip.eval.outcomes import Outcomes, Record
from filip.eval.pointing import coverage
from filip.eval.protocols import Column, NoSettings, Numbers, Protocol, ReportTable
from filip.eval.protocols.zero_shot import prompts_of
from filip.eval.word_patch import Prompt, label_tokens

BATCH = 16  # images at a time: each is compared with all prompts of all classes


def run(encoder: Encoder, card: BenchmarkCard, settings: NoSettings, context: Context, record: Record) -> Numbers:
    """Measure one benchmark (fractions). The share of right pixels of each image is put into ``record``.

    Raises UserError if the data set is missing or the model has no patches.
    """
    data, ensemble = open_set(card, context.root), prompts_of(card, settings, context)
    classes = list(data.classes or [])
    names = [(card.classes or {}).get(name, name) for name in classes]
    vectors = class_vectors(encoder, names, ensemble)
    seen = encoder.transform, encoder.grid
    areas = []  # per image [3, classes]: pixels that are right, predicted and true, in patches
    rows = []  # per image: the predictions among its own classes
    keys = []
    with Progress(card.name, "images", len(data)) as progress:
        for start in range(0, len(data), BATCH):
            samples = [data.needed(index) for index in range(start, min(start + BATCH, len(data)))]
            scored = class_scores(encoder, samples, vectors, len(ensemble))
            for sample, scores in zip(samples, scored, strict=True):
                values = np.asarray(sample.segments)
                shares = {  # {class in the image: [rows, columns], the share that it has of each patch}
                    int(number): coverage(Image.fromarray(255 * (values == number).astype(np.uint8)), *seen)
                    for number in np.unique(values[values >= 0])
                }
                areas.append(image_areas(shares, scores.argmax(-1), len(classes)))
                rows.append(among_own(shares, scores, len(classes)))
                keys.append(sample.key)
            progress.add(len(samples))
    counted = np.stack(areas)
    right = counted[:, 0].sum(1) / np.maximum(counted[:, 2].sum(1), 1e-12)
    record[card.name] = Outcomes.of(keys, {"pixels": right, "present": [row.pixels for row in rows]})
    total = counted.sum(0)
    per_class = intersection_over_union(total)
    return {
        "n": len(keys),
        "classes": len(classes),
        "miou": float(np.nanmean(per_class)),
        "pixels": float(total[0].sum() / max(total[2].sum(), 1e-12)),
        "chance": 1 / len(classes),
        "present": _over_images(rows),
        "per_class": [[n, None if np.isnan(v) else float(v)] for n, v in zip(names, per_class, strict=True)],
        "prompts": len(ensemble),
        "split": card.split,
        "note": size_note(card, len(keys)),
    }


def class_vectors(encoder: Encoder, names: list[str], ensemble: list[Prompt]) -> list[Tensor]:
    """Encode each class's prompts as unit vectors [m, d], class-major: its name's tokens, or one vector per prompt."""
    if not encoder.token_wise:
        filled = [prompt.fill(name) for name in names for prompt in ensemble]
        return [vector.cpu()[None] for vector in F.normalize(encoder.encode_texts(filled)[0], dim=-1)]
    vectors = []
    for name in names:
        texts = encoder.words([prompt.fill(name) for prompt in ensemble])
        for prompt, tokens in zip(ensemble, texts, strict=True):
            places = label_tokens(encoder, prompt, name)
            if not places:
                raise UserError(f"the tokenizer leaves nothing of the class {name!r}")
            vectors.append(tokens[places])
    return vectors


def class_scores(encoder: Encoder, samples: list[Sample], vectors: list[Tensor], prompts: int) -> list[np.ndarray]:
    """Return [rows, columns, classes] for each image: how similar each patch is to each class."""
    pixels = torch.stack([encoder.transform(sample.image) for sample in samples])
    patches = F.normalize(encoder.patches(pixels), dim=-1)
    lengths = [len(tokens) for tokens in vectors]
    similarity = patches @ torch.cat(vectors).T  # [images, patches, tokens of all classes' prompts]
    best_token = torch.stack([part.amax(-1) for part in similarity.split(lengths, dim=-1)], -1)
    scores = best_token.view(*patches.shape[:2], -1, prompts).mean(-1)
    return list(scores.view(len(samples), *encoder.grid, -1).numpy())


def image_areas(shares: dict[int, np.ndarray], best: np.ndarray, classes: int) -> np.ndarray:
    """Return [3, classes]: for each class the area that is right, predicted and true, in patches.

    A patch's pixels all have its class, so areas are sums of the shares that the true classes have of each patch.
    best: [rows, columns] int, the class of each patch.
    """
    labelled = np.zeros(best.shape)
    areas = np.zeros((3, classes))
    for number, share in shares.items():
        labelled += share
        areas[0, number] = share[best == number].sum()
        areas[2, number] = share.sum()
    areas[1] = np.bincount(best.ravel(), weights=labelled.ravel(), minlength=classes)
    return areas


class AmongOwn(NamedTuple):
    """An image's share of right pixels and mIoU where its patches choose from its own classes; chance of a pixel."""

    pixels: float
    miou: float
    chance: float


def among_own(shares: dict[int, np.ndarray], scores: np.ndarray, classes: int) -> AmongOwn:
    """Let the patches of an image choose from the classes that it has. NaN for an image without any."""
    if not shares:
        return AmongOwn(math.nan, math.nan, math.nan)
    present = np.array(list(shares))
    areas = image_areas(shares, present[scores[..., present].argmax(-1)], classes)
    ious = intersection_over_union(areas)[present]
    right = areas[0].sum() / max(areas[2].sum(), 1e-12)
    return AmongOwn(float(right), float(np.nanmean(ious)) if np.isfinite(ious).any() else 0.0, 1 / len(present))


def _over_images(images: list[AmongOwn]) -> dict[str, Any]:
    """Return the means over images that have classes, with 95 % intervals over images."""
    columns = np.array(images)[np.isfinite([image.chance for image in images])]
    if not len(columns):
        return {}
    means = dict(zip(AmongOwn._fields, columns.mean(0).tolist(), strict=True))
    intervals = {name: list(mean_interval(columns[:, i])) for i, name in enumerate(("pixels", "miou"))}
    return means | {"ci95": intervals}


def intersection_over_union(areas: np.ndarray) -> np.ndarray:
    """Return [classes] from [3, classes]; NaN for a class that is neither there nor predicted."""
    union = areas[1] + areas[2] - areas[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(union > 0, areas[0] / union, np.nan)


PROTOCOL = Protocol(
    "segmentation",
    ("segmentation",),
    run,
    NoSettings,
    ReportTable(
        "Zero-shot segmentation (%)",
        # Only one column's outcomes are kept for each image; the rows are compared in pairs by it.
        (
            Column("mIoU", "miou", "miou", chance="", interval=""),  # a bootstrap's would hardly hold the estimate
            Column("pixels right", "pixels", "pixels", interval=""),
            Column(
                "pixels right, of the image's classes",
                "present_pixels",
                "present.pixels",
                "present.chance",
                "present.ci95.pixels",
                outcome="/present",
            ),
            Column("mIoU, of the image's classes", "present_miou", "present.miou", "", "present.ci95.miou"),
        ),
        (
            "Pixels count as the model sees them, without sliding windows.",
            "In columns of the image's classes, its patches choose from the classes that it has, as SPARC evaluates.",
            "A pooled model's patches go through its projection, which was trained on one vector an image.",
        ),
    ),
    note="Each patch takes its best class, each pixel the class of its patch: mean intersection over union.",
    prepare=prompts_of,
    reads_prompts=True,
    on_patches=True,
)
