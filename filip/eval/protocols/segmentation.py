"""Zero-shot segmentation.

Every patch takes its best class, and every pixel the class of its patch: mean intersection over union, as in SPARC
(Bica et al. 2024). The score of a class for a patch is the mean over the class's prompts: for a token-wise model of the
patch's similarity to its best token of the class's name, for a pooled one (through its own projections) of that to the
prompt's vector. Pixels are counted as the model sees the image, at its resolution and after its crop; those without a
label are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from filip.command import option
from filip.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.context import Context
from filip.eval.datasets import Sample
from filip.eval.encode_set import size_note
from filip.eval.encoders import Encoder
from filip.eval.formats import open_set
from filip.eval.outcomes import Outcomes, Record
from filip.eval.pointing import coverage
from filip.eval.prompts import Prompt, card_ensemble
from filip.eval.protocols import Column, Numbers, Protocol
from filip.eval.word_patch import label_tokens
from filip.progress import Progress


@dataclass
class SegmentationSettings:
    batch_size: int = option(
        16, "images at a time: each is compared with all prompts of all classes", at_least=1
    )


def run(
    encoder: Encoder, card: BenchmarkCard, settings: SegmentationSettings, context: Context, record: Record
) -> Numbers:
    ensemble = prompts_of(card, settings, context)
    return segment(encoder, card, context.root, ensemble, record, settings.batch_size)


def prompts_of(card: BenchmarkCard, settings: SegmentationSettings, context: Context) -> list[Prompt]:
    return card_ensemble(context.prompts, card.prompts)


def segment(
    encoder: Encoder,
    card: BenchmarkCard,
    root: str,
    ensemble: list[Prompt],
    record: Record | None = None,
    batch_size: int = 16,
) -> dict[str, Any]:
    """Measure one benchmark (fractions). The share of right pixels of each image is put into ``record``.

    Raises UserError if the data set is missing or the model has no patches.
    """
    data = open_set(card, root)
    classes = list(data.classes or [])
    names = [(card.classes or {}).get(name, name) for name in classes]
    vectors = class_vectors(encoder, names, ensemble)
    areas = []  # per image [3, classes]: pixels that are right, predicted and true, in patches
    keys = []
    with Progress(card.name, "images", len(data)) as progress:
        for start in range(0, len(data), batch_size):
            samples = [data[index] for index in range(start, min(start + batch_size, len(data)))]
            predicted = best_classes(encoder, samples, vectors, len(ensemble))
            for sample, best in zip(samples, predicted, strict=True):
                areas.append(image_areas(encoder, sample, best, len(classes)))
                keys.append(sample.key)
            progress.add(len(samples))
    counted = np.stack(areas)
    right = counted[:, 0].sum(1) / np.maximum(counted[:, 2].sum(1), 1e-12)
    if record is not None:
        record[card.name] = Outcomes.of(keys, {"pixels": right})
    total = counted.sum(0)
    per_class = intersection_over_union(total)
    return {
        "n": len(keys),
        "classes": len(classes),
        "miou": float(np.nanmean(per_class)),
        "ci95": list(_interval(counted)),
        "pixels": float(total[0].sum() / max(total[2].sum(), 1e-12)),
        "per_class": [[n, None if np.isnan(v) else float(v)] for n, v in zip(names, per_class, strict=True)],
        "prompts": len(ensemble),
        "split": card.split,
        "note": size_note(card, len(keys)),
    }


def class_vectors(encoder: Encoder, names: list[str], ensemble: list[Prompt]) -> list[Tensor]:
    """Encode each class's prompts as unit vectors [m, d], class-major: its name's tokens, or one vector per prompt."""
    if not encoder.token_wise:
        filled = [prompt.fill(name) for name in names for prompt in ensemble]
        return [vector.cpu()[None] for vector in encoder.encode_texts(filled)[0]]
    found = []
    for name in names:
        texts = encoder.words([prompt.fill(name) for prompt in ensemble])
        for prompt, tokens in zip(ensemble, texts, strict=True):
            places = label_tokens(encoder, prompt, name)
            if not places:
                raise UserError(f"the tokenizer leaves nothing of the class {name!r}")
            found.append(tokens[places])
    return found


def best_classes(
    encoder: Encoder, samples: list[Sample], vectors: list[Tensor], prompts: int
) -> list[np.ndarray]:
    """Return [rows, columns] int for each image: the class that each patch is most similar to."""
    pixels = torch.stack([encoder.transform(sample.image) for sample in samples])
    patches = F.normalize(encoder.patches(pixels), dim=-1)
    lengths = [len(tokens) for tokens in vectors]
    similarity = patches @ torch.cat(vectors).T  # [images, patches, tokens of all classes' prompts]
    best_token = torch.stack([part.amax(-1) for part in similarity.split(lengths, dim=-1)], -1)
    scores = best_token.view(*patches.shape[:2], -1, prompts).mean(-1)
    return list(scores.argmax(-1).view(len(samples), *encoder.grid).numpy())


def image_areas(encoder: Encoder, sample: Sample, best: np.ndarray, classes: int) -> np.ndarray:
    """Return [3, classes]: for each class the area that is right, predicted and true, in patches.

    A patch's pixels all have its class, so areas are sums of the shares that the true classes have of each patch.
    """
    assert sample.segments is not None
    values = np.asarray(sample.segments)
    labelled = np.zeros(best.shape)
    areas = np.zeros((3, classes))
    for number in np.unique(values[values >= 0]):
        share = coverage(sample.mask_of(int(number)), encoder.transform, encoder.grid)
        labelled += share
        areas[0, number] = share[best == number].sum()
        areas[2, number] = share.sum()
    areas[1] = np.bincount(best.ravel(), weights=labelled.ravel(), minlength=classes)
    return areas


def intersection_over_union(areas: np.ndarray) -> np.ndarray:
    """Return [classes] from [3, classes]; NaN for a class that is neither there nor predicted."""
    union = areas[1] + areas[2] - areas[0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(union > 0, areas[0] / union, np.nan)


def _interval(areas: np.ndarray, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mIoU over bootstrap samples of images. areas: [images, 3, classes]."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(areas), np.full(len(areas), 1 / len(areas)), resamples)
    totals = np.tensordot(drawn.astype(float), areas, axes=1)
    found = [float(np.nanmean(intersection_over_union(total))) for total in totals]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


PROTOCOL = Protocol(
    "segmentation",
    ("segmentation",),
    run,
    SegmentationSettings,
    columns=(Column("mIoU", "miou", chance=""), Column("pixels right", "pixels", "chance", interval="")),
    note="Each patch takes its best class, each pixel the class of its patch: mean intersection over union.",
    prepare=prompts_of,
    reads_prompts=True,
)
