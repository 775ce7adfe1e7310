"""Accuracy, recall at k, chance and intervals. Nothing here knows of models or files.

**Ties.** Equal scores are ordered at random, and a metric is its expected value over those orders: an item
with a score that two others share counts 1/3 at k = 1. A collapsed model, with equal scores,
therefore gets exactly chance, never 100 % because of a lucky sort. Scores that are not finite rank last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def hits_at_k(best_own: Tensor, scores: Tensor, own: Tensor, ks: Sequence[int]) -> Tensor:
    """Return the probability, over random orders of ties, that an own candidate is among the first k.

    best_own: [q], the highest score of a query's own candidates; scores: [q, c]; own: [q, c] bool.
    Returns [q, len(ks)] float64 in 0..1.
    """
    best = best_own.unsqueeze(1)
    ahead = (scores > best).sum(1)
    equal = scores == best
    tied_own = (equal & own).sum(1).double()
    tied_other = (equal & ~own).sum(1).double()
    columns = []
    for k in ks:
        slots = (k - ahead).clamp(min=0)
        # Drawing `slots` items from the tied ones without replacement: the chance that none of them is own.
        none_own = torch.ones_like(tied_other)
        for drawn in range(int(slots.max().item()) if len(slots) else 0):
            left = (tied_own + tied_other - drawn).clamp(min=1)
            factor = ((tied_other - drawn) / left).clamp(min=0)
            none_own = torch.where(drawn < slots, none_own * factor, none_own)
        columns.append(torch.where(slots > 0, 1 - none_own, torch.zeros_like(none_own)))
    return torch.stack(columns, 1) if columns else torch.zeros(len(best_own), 0, dtype=torch.float64)


def label_hits(scores: Tensor, labels: Tensor, ks: Sequence[int]) -> Tensor:
    """Return the top-k hits of a classifier, [n, len(ks)] float64. scores: [n, classes]; labels: [n] int64."""
    scores = _rankable(scores)
    own = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, labels.unsqueeze(1), True)
    return hits_at_k(scores.gather(1, labels.unsqueeze(1)).squeeze(1), scores, own, ks)


def retrieval_hits(
    scores: Tensor,
    query_group: Tensor,
    candidate_group: Tensor,
    ks: Sequence[int],
    rows: int = 512,
    ties: str = "expected",
) -> Tensor:
    """Return hits at k where a candidate is a query's own if both carry the same group number.

    scores: [queries, candidates]; query_group: [queries] and candidate_group: [candidates], int64 (for image
    to text: the image's index, and the index of the image that a caption belongs to). A hit is any own
    candidate in the top k. Works through ``rows`` queries at a time, so that nothing as large as ``scores``
    is allocated. ties: "first" takes the candidates that torch.topk finds first. Returns [queries, len(ks)] float64.
    Raises ValueError if a query has no own candidate.
    """
    found = []
    for start in range(0, len(scores), rows):
        part = _rankable(scores[start : start + rows])
        own = query_group[start : start + rows, None] == candidate_group[None, :]
        if not bool(own.any(1).all()):
            lost = start + int((~own.any(1)).nonzero()[0])
            raise ValueError(f"query {lost} has no own candidate")
        if ties == "first":
            first = own.gather(1, part.topk(min(max(ks), part.shape[1]), dim=1).indices)
            found.append(torch.stack([first[:, :k].any(1) for k in ks], 1).double())
            continue
        best_own = part.masked_fill(~own, -torch.inf).amax(1)
        found.append(hits_at_k(best_own, part, own, ks))
    return torch.cat(found) if found else torch.zeros(0, len(ks), dtype=torch.float64)


def _rankable(scores: Tensor) -> Tensor:
    """Replace numbers that are not finite by the lowest finite one: it ranks last and still counts as a tie."""
    if bool(torch.isfinite(scores).all()):
        return scores
    return torch.where(torch.isfinite(scores), scores, torch.full_like(scores, torch.finfo(scores.dtype).min))


def class_accuracies(hits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the accuracy within each class: [classes]; NaN for a class without images. hits: [n]; labels: [n]."""
    total = torch.zeros(classes, dtype=torch.float64).index_add_(0, labels, hits.double())
    count = torch.bincount(labels, minlength=classes).double()
    return total / count  # 0 / 0 is NaN, as an absent class should be


def chance_at_k(own: int, candidates: int, k: int) -> float:
    """Return the probability that k random candidates contain one of ``own``: 1 - C(c - own, k) / C(c, k)."""
    miss = 1.0
    for drawn in range(min(k, candidates)):
        miss *= max(candidates - own - drawn, 0) / (candidates - drawn)
    return 1.0 - miss


def retrieval_chance(query_group: Tensor, candidate_group: Tensor, ks: Sequence[int]) -> list[float]:
    """Return the mean of :func:`chance_at_k` over the queries, for each k."""
    _, inverse, counts = torch.unique(candidate_group, return_inverse=True, return_counts=True)
    size_of = dict(zip(candidate_group.tolist(), counts[inverse].tolist(), strict=True))
    own, times = np.unique([size_of.get(g, 0) for g in query_group.tolist()], return_counts=True)
    weights = times / times.sum()
    total = len(candidate_group)
    return [float(sum(w * chance_at_k(int(o), total, k) for o, w in zip(own, weights, strict=True))) for k in ks]


def mean_interval(
    values: np.ndarray | Tensor,
    clusters: np.ndarray | Tensor | None = None,
    classes: np.ndarray | Tensor | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % interval of a mean of values in 0..1.

    values: [n], one number per query. clusters: [n], the image a query belongs to (captions of one image are not
    independent). classes: [n], for a mean of per-class means; not to be combined with clusters.
    Independent queries: Wilson's interval, which is not a single point at 0 or 1. Otherwise a percentile bootstrap over
    images: drawn together with all their queries, or within their class, so that no class disappears.
    Returns (low, high); (nan, nan) for no values. Deterministic for a given seed.
    """
    value = np.asarray(values, dtype=np.float64)
    if value.size == 0:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    if classes is not None:
        means = _class_balanced_means(value, np.asarray(classes), resamples, rng)
    else:
        label = np.arange(value.size) if clusters is None else np.asarray(clusters)
        _, index = np.unique(label, return_inverse=True)
        independent = int(index.max()) + 1
        if independent == value.size or value.min() == value.max():
            return wilson_interval(float(value.mean()), independent)
        means = _resampled_means(np.bincount(index, weights=value), np.bincount(index), resamples, rng)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def wilson_interval(share: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a proportion ``share`` of ``n`` independent trials (Wilson 1927)."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def _class_balanced_means(
    value: np.ndarray, classes: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Return resampled means of class means. Images are drawn within their class; those that are alone in theirs, and
    would not vary, are drawn from among each other."""
    groups = [value[classes == c] for c in np.unique(classes)]
    alone = np.concatenate([g for g in groups if len(g) == 1] or [np.empty(0)])
    total = np.zeros(resamples)
    for group in (g for g in groups if len(g) > 1):
        total += _resampled_means(group, np.ones_like(group), resamples, rng)
    if len(alone):
        total += len(alone) * _resampled_means(alone, np.ones_like(alone), resamples, rng)
    return total / len(groups)


def _resampled_means(total: np.ndarray, count: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return means over ``resamples`` draws with replacement of units that have a sum and a count each."""
    n = len(total)
    means = np.empty(resamples)
    step = max(1, 4_000_000 // n)  # at most 32 MB of indices at a time
    for start in range(0, resamples, step):
        drawn = rng.integers(0, n, size=(min(step, resamples - start), n))
        means[start : start + len(drawn)] = total[drawn].sum(1) / count[drawn].sum(1)
    return means
