"""Zero-shot classification: ``python -m filip.eval.zero_shot model=M root=DIR cards=[…] out=FILE.json``.

The score of a class is the mean over its prompts of s^I (the image-to-text similarity). Embeddings are not
averaged, except on request for a pooled model (``ensemble=embedding``), which is what CLIP and CLIP_benchmark
do and what numbers published for CLIP models rest on.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from filip.command import option, run_command
from filip.errors import UserError
from filip.eval.cards import BenchmarkCard, match_classes
from filip.eval.datasets import Batch
from filip.eval.encode_set import Source, collect, size_note
from filip.eval.formats import open_set
from filip.eval.metrics import class_accuracies, confusion, label_hits, mean_interval
from filip.eval.options import EvalOptions, skipped_entry
from filip.eval.outcomes import Outcomes, Record, write_outcomes
from filip.eval.prompts import Prompt, card_ensemble
from filip.eval.scorer import Scorer, Texts
from filip.eval.sharing import launched, shared_main
from filip.files import write_json
from filip.progress import say

ENSEMBLES = ("score", "embedding")


@dataclass
class ZeroShot(EvalOptions):
    prompts: str = option(
        "eval/prompts.yaml",
        "prompt ensembles; eval/prompts_clip.yaml has CLIP's; or one prompt with {c} in it",
    )
    ensemble: str = option(
        "score",
        "score: mean of scores over prompts; embedding: mean vector (pooled models)",
        choices=ENSEMBLES,
    )


def main(config: ZeroShot) -> None:
    """Zero-shot accuracy of a model on several benchmarks, written as JSON."""

    def write(result: dict[str, Any], record: Record) -> None:
        write_outcomes(config.out, record)
        write_json(config.out, result)

    shared_main(config, evaluate, write)


def evaluate(config: ZeroShot, scorer: Scorer | None = None) -> tuple[dict[str, Any], Record]:
    """What the result file says, and the outcome of each image. ``scorer``: of the model, if it is loaded already."""
    cards, skipped = config.load_cards("classification")
    ensembles = {card.name: card_ensemble(config.prompts, card.prompts) for card in cards}
    scorer = scorer or config.scorer()
    tasks = {}
    record: Record = {}
    for card in cards:
        tasks[card.name] = zero_shot_task(
            scorer,
            card,
            config.root,
            ensembles[card.name],
            config.ensemble,
            config.batch_size,
            config.workers,
            record,
        )
        task = tasks[card.name]
        say(
            f"{card.name}: {card.metric} {100 * task['value']:.1f} % of {task['n']:,} images, "
            f"{task['classes']} classes (chance {100 * task['chance']:.1f} %)"
        )
    result = {
        **config.result_header(scorer.encoder),
        "ensemble": config.ensemble,
        "prompt_file": config.prompts,
        "tasks": tasks,
        **skipped_entry(skipped),
    }
    return result, record


def zero_shot_task(
    scorer: Scorer,
    card: BenchmarkCard,
    root: str | Path,
    ensemble: list[Prompt],
    average: str = "score",
    batch_size: int = 64,
    workers: int = 0,
    record: Record | None = None,
) -> dict[str, Any]:
    """Classify one test set; the numbers of the result file for it (fractions, not percentages).

    The outcome of each image is put into ``record``. Raises UserError if the data set is missing, its classes are not
    the card's, or ``average`` asks for mean embeddings of a token-wise model.
    """
    data = open_set(card, root)
    names = match_classes(card, data.classes or [])
    texts = scorer.encode_texts([p.fill(name) for name in names for p in ensemble])
    if average == "embedding":
        texts = mean_embeddings(scorer, texts, len(ensemble))
    prompts = 1 if average == "embedding" else len(ensemble)

    def keep(images: Tensor, batch: Batch) -> tuple[Tensor, Tensor, list[str], list[str]]:
        return class_scores(scorer, images, texts, prompts), batch.labels, batch.keys, batch.clusters

    parts = collect(scorer, Source(data, card.name, batch_size, workers, card, root, with_probe=True), keep)
    scores, labels, keys_of, clusters_of = zip(*parts, strict=True)
    every_score, every_label = torch.cat(scores), torch.cat(labels)
    keys, clusters = list(itertools.chain(*keys_of)), list(itertools.chain(*clusters_of))
    result = measure(card, every_score, every_label, names, clusters)
    if record is not None:
        record[card.name] = outcomes(keys, clusters, every_score, every_label)
    return {**result, "prompts": len(ensemble), "split": card.split, "layout": card.loader}


def outcomes(keys: list[str], clusters: list[str], scores: Tensor, labels: Tensor) -> Outcomes:
    """Hits of each image. scores: [n, classes]; labels: [n] int64."""
    ks = [1, 5] if scores.shape[1] > 5 else [1]
    hits = label_hits(scores, labels, ks)
    return Outcomes.of(keys, {f"top{k}": hits[:, i] for i, k in enumerate(ks)}, clusters)


def class_scores(scorer: Scorer, images: Tensor, texts: Texts, prompts: int) -> Tensor:
    """Mean of s^I over each class's prompts. texts: class-major, ``prompts`` a class. -> [images, classes]."""
    similarity = scorer.similarity(images, texts).i2t
    return similarity.view(len(similarity), -1, prompts).mean(2)


def mean_embeddings(scorer: Scorer, texts: Texts, prompts: int) -> Texts:
    """CLIP's ensemble: the normalised mean of a class's prompt vectors, for pooled models only."""
    if scorer.token_wise:
        raise UserError(
            "ensemble=embedding averages vectors, which has no meaning for a token-wise model: "
            "use ensemble=score"
        )
    return Texts(F.normalize(texts.values.view(-1, prompts, texts.values.shape[1]).mean(1), dim=-1), None)


def measure(
    card: BenchmarkCard, scores: Tensor, labels: Tensor, names: list[str], clusters: list[str]
) -> dict[str, Any]:
    """Accuracies, interval, chance and mistakes of a classifier.

    scores: [n, classes]; labels: [n] int64; clusters: n, equal for images that are not independent.
    """
    classes = len(names)
    ks = [1, 5] if classes > 5 else [1]
    hits = label_hits(scores, labels, ks)
    per_class = class_accuracies(hits[:, 0], labels, classes)
    values = {
        "top1": float(hits[:, 0].mean()),
        "top5": float(hits[:, 1].mean()) if len(ks) > 1 else None,
        "mean_per_class": float(per_class[~per_class.isnan()].mean()),
    }
    if card.metric == "mean_per_class":
        interval = mean_interval(hits[:, 0], classes=labels)
    else:
        shown = hits[:, ks.index(5) if card.metric == "top5" else 0]
        interval = mean_interval(shown, clusters=np.asarray(clusters))
    not_finite = int((~torch.isfinite(scores)).any(1).sum())
    return {
        "metric": card.metric,
        "value": values[card.metric],
        **values,
        "chance": (5 if card.metric == "top5" else 1) / classes,
        "n": len(labels),
        "classes": classes,
        "ci95": list(interval),
        # a list, since names may repeat (ImageNet has two missiles)
        "per_class": [[n, None if a != a else a] for n, a in zip(names, per_class.tolist(), strict=True)],
        **_mistakes(scores, labels, names),
        "not_finite": not_finite,
        "note": size_note(card, len(labels)),
    }


def _mistakes(scores: Tensor, labels: Tensor, names: list[str], most: int = 20) -> dict[str, list[list[Any]]]:
    """``confused``: the most frequent mistakes as [true class, predicted class, times]; ``overpredicted``: the
    classes that images of other classes are most often taken for, as [class, times]."""
    counts = confusion(scores, labels, len(names))
    counts.fill_diagonal_(0)
    times, where = counts.flatten().topk(min(most, counts.numel()))
    pairs = [
        [names[w // len(names)], names[w % len(names)], t]
        for t, w in zip(times.tolist(), where.tolist(), strict=True)
        if t > 0
    ]
    times, where = counts.sum(0).topk(min(most, len(names)))
    over = [[names[w], t] for t, w in zip(times.tolist(), where.tolist(), strict=True) if t > 0]
    return {"confused": pairs, "overpredicted": over}


if __name__ == "__main__":
    run_command(main, ZeroShot, quiet=launched().rank > 0)
