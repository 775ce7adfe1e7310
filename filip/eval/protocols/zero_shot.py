"""Zero-shot classification.

The score of a class is the mean over its prompts of s^I (the image-to-text similarity), as in the paper, or that of the
mean vector of its prompts, as CLIP and CLIP_benchmark do it: each model by the protocol of its family
(:mod:`filip.eval.families`), so that numbers published for CLIP models come out of their weights. The accuracy of a
token-wise model by s^T is among the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.cli.command import option
from filip.common.errors import UserError
from filip.eval.cards import BenchmarkCard, match_classes
from filip.eval.classification import measure, outcomes
from filip.eval.encode_set import Context
from filip.eval.encoders import Encoder
from filip.eval.families import AUTO, FAMILIES
from filip.eval.formats import open_set
from filip.eval.outcomes import Record
from filip.eval.prompts import card_ensemble
from filip.eval.protocols import Column, Numbers, Protocol, ReportTable
from filip.eval.scorer import Scorer, Texts
from filip.eval.word_patch import Prompt
from late_interaction import Similarity

ENSEMBLES = (AUTO, "score", "embedding", "probability")


@dataclass
class ZeroShotSettings:
    ensemble: str = option(
        AUTO,
        "score: mean of scores over prompts; embedding: mean vector (pooled models); probability: mean over prompts of "
        "a soft-max over classes, of scale 1 (Wukong); auto: as its authors do",
        choices=ENSEMBLES,
    )


def settle(settings: ZeroShotSettings, encoder: Encoder) -> ZeroShotSettings:
    """Return the settings with the ensemble that a model has where it is "auto"."""
    if settings.ensemble != AUTO:
        return settings
    family = FAMILIES[encoder.family]
    return replace(settings, ensemble=family.of_tokens if encoder.token_wise else family.ensemble)


def run(encoder: Encoder, card: BenchmarkCard, settings: ZeroShotSettings, context: Context, record: Record) -> Numbers:
    """Classify one test set; return its numbers for the result file (fractions, not percentages).

    The outcome of each image is put into ``record``. Raises UserError if the data set is missing, its classes are not
    the card's, or the settings ask for mean embeddings of a token-wise model.
    """
    scorer, ensemble, average = context.scorer(encoder), prompts_of(card, settings, context), settings.ensemble
    data = open_set(card, context.root)
    names = match_classes(card, data.classes or [])
    texts = scorer.encode_texts([p.fill(name) for name in names for p in ensemble])
    prompts = len(ensemble)
    if average == "embedding" and scorer.token_wise:
        raise UserError(
            "ensemble=embedding averages vectors, which has no meaning for a token-wise model: use ensemble=score"
        )
    if average == "embedding":  # CLIP's ensemble: the normalised mean of a class's prompt vectors
        means = texts.values.view(len(names), prompts, -1).mean(1)
        texts, prompts = Texts(F.normalize(means, dim=-1), None), 1

    scores: list[Similarity] = []
    labels: list[Tensor] = []
    keys: list[str] = []
    clusters: list[str] = []
    for images, batch in context.encoded(data, card.name, scorer):
        scores.append(class_scores(scorer, images, texts, prompts, average))
        labels.append(batch.labels)
        keys += batch.keys
        clusters += batch.clusters
    every_score, every_label = torch.cat([part.i2t for part in scores]), torch.cat(labels)
    result = measure(card, every_score, every_label, names, clusters)
    if scorer.token_wise:
        other = measure(card, torch.cat([part.t2i for part in scores]), every_label, names, clusters)
        result["by"] = {"text": {key: other[key] for key in ("value", "ci95")}}
    record[card.name] = outcomes(keys, clusters, every_score, every_label)
    return {**result, "prompts": len(ensemble), "split": card.split, "layout": card.loader}


def prompts_of(card: BenchmarkCard, settings: object, context: Context) -> list[Prompt]:
    """Return the prompts around each class; segmentation takes them, too."""
    return card_ensemble(context.prompts, card.prompts)


def class_scores(scorer: Scorer, images: Tensor, texts: Texts, prompts: int, average: str = "score") -> Similarity:
    """Return means over each class's prompts, [images, classes] each. texts: class-major, ``prompts`` a class.

    average: "probability" means over the prompts' soft-max over classes.
    """
    similarity = scorer.similarity(images, texts)
    of_prompts = [scores.view(len(images), -1, prompts) for scores in (similarity.i2t, similarity.t2i)]
    if average == "probability":
        of_prompts = [scores.softmax(1) for scores in of_prompts]
    return Similarity(*(scores.mean(2) for scores in of_prompts))


PROTOCOL = Protocol(
    "zero-shot",
    ("classification",),
    run,
    ZeroShotSettings,
    ReportTable(
        "Zero-shot classification (accuracy, %)",
        (
            Column("{metric}", outcome="/{metric}", headline=True),
            Column("{metric} by s^T", "by_text", "by.text.value", "", "by.text.ci95", in_report=False),
        ),
        average=True,
        published={"zero_shot_classification": "published", "zero_shot_chinese": "published"},
    ),
    note="The score of a class is the mean of its prompts' similarities to the image, or that of their mean vector.",
    prepare=prompts_of,
    settle=settle,
    while_training=True,
    reads_prompts=True,
)
