"""The numbers of a classifier from its scores: accuracies, interval and chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from filip.eval.cards import BenchmarkCard
from filip.eval.encode_set import size_note
from filip.eval.metrics import class_accuracies, label_hits, mean_interval
from filip.eval.outcomes import Outcomes


def outcomes(keys: list[str], clusters: list[str], scores: Tensor, labels: Tensor) -> Outcomes:
    """Return the hits of each image. scores: [n, classes]; labels: [n] int64."""
    ks = [1, 5] if scores.shape[1] > 5 else [1]
    hits = label_hits(scores, labels, ks)
    return Outcomes.of(keys, {f"top{k}": hits[:, i] for i, k in enumerate(ks)}, clusters)


def measure(
    card: BenchmarkCard, scores: Tensor, labels: Tensor, names: list[str], clusters: list[str]
) -> dict[str, Any]:
    """Return the accuracies, interval and chance of a classifier.

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
        "not_finite": int((~torch.isfinite(scores)).any(1).sum()),
        "note": size_note(card, len(labels)),
    }
