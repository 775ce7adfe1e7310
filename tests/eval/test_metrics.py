"""Metrics against scikit-learn, CLIP_benchmark's formula and brute force over all orders of ties."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

from filip.eval.metrics import (
    chance_at_k,
    class_accuracies,
    label_hits,
    mean_interval,
    retrieval_chance,
    retrieval_hits,
)


def test_accuracies_equal_scikit_learn_without_ties():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(400, 12, generator=generator)
    labels = torch.randint(12, (400,), generator=generator)
    hits = label_hits(scores, labels, [1, 5])
    predicted = scores.argmax(1)
    assert float(hits[:, 0].mean()) == pytest.approx(accuracy_score(labels, predicted), abs=1e-12)
    assert float(hits[:, 1].mean()) == pytest.approx(
        top_k_accuracy_score(labels.numpy(), scores.numpy(), k=5), abs=1e-12
    )
    per_class = class_accuracies(hits[:, 0], labels, 12)
    assert float(per_class.mean()) == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)


def expected_hit(scores: list[float], own: list[bool], k: int) -> float:
    """Count by brute force the share of all orders consistent with the scores that have an own item in the first k."""
    results = []
    for order in itertools.permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            results.append(any(own[i] for i in order[:k]))
    return sum(results) / len(results)


@pytest.mark.parametrize("seed", range(12))
def test_hits_with_ties_are_the_mean_over_all_orders(seed):
    rng = np.random.default_rng(seed)
    queries, candidates = 5, 6
    scores = torch.tensor(rng.integers(0, 3, (queries, candidates)), dtype=torch.float32)
    groups = torch.tensor(rng.integers(0, 3, candidates))
    groups[:3] = torch.arange(3)  # every query has at least one own candidate
    query_groups = torch.tensor(rng.integers(0, 3, queries))
    hits = retrieval_hits(scores, query_groups, groups, [1, 2, 5], rows=2)
    for q in range(queries):
        own = (groups == query_groups[q]).tolist()
        for column, k in enumerate((1, 2, 5)):
            assert float(hits[q, column]) == pytest.approx(expected_hit(scores[q].tolist(), own, k), abs=1e-12)


def test_a_collapsed_model_gets_exactly_chance():
    owner = torch.arange(30).repeat_interleave(3)
    images = torch.arange(30)
    hits = retrieval_hits(torch.zeros(30, 90), images, owner, [1, 5, 10])
    assert hits.mean(0).tolist() == pytest.approx(retrieval_chance(images, owner, [1, 5, 10]), abs=1e-12)
    labels = torch.arange(7)
    assert float(label_hits(torch.zeros(7, 7), labels, [1]).mean()) == pytest.approx(1 / 7)


def test_scores_that_are_not_finite_rank_last():
    scores = torch.tensor([[float("nan"), 0.0, -1.0], [float("nan"), float("-inf"), float("nan")]])
    hits = label_hits(scores, torch.tensor([0, 0]), [1, 2])
    assert hits[0].tolist() == [0.0, 0.0]
    assert hits[1].tolist() == pytest.approx([1 / 3, 2 / 3])  # nothing to tell them apart: chance


def test_chance_is_the_hypergeometric_miss():
    for own, total, k in ((1, 1590, 1), (5, 25010, 10), (3, 4, 2), (2, 2, 5)):
        k_drawn = min(k, total)
        expected = 1 - math.comb(total - own, k_drawn) / math.comb(total, k_drawn)
        assert chance_at_k(own, total, k) == pytest.approx(expected, abs=1e-12)


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        sample = rng.random(80) < 0.3
        low, high = mean_interval(sample.astype(float), resamples=300, seed=trial)
        inside += low <= 0.3 <= high
    assert 0.90 <= inside / 200 <= 0.99


def test_bootstrap_over_images_is_wider_when_captions_agree():
    """Five captions of an image that succeed and fail together are one observation, not five."""
    hits = np.repeat(np.arange(60) % 3 == 0, 5).astype(float)
    image = np.repeat(np.arange(60), 5)
    alone = np.subtract(*mean_interval(hits)[::-1])
    together = np.subtract(*mean_interval(hits, clusters=image)[::-1])
    assert together > 1.7 * alone


def test_bootstrap_within_classes_keeps_every_class():
    labels = np.array([0] * 98 + [1] * 2)
    hits = np.where(labels == 0, 1.0, 0.0)
    # plain resampling would lose class 1 at times
    assert mean_interval(hits, classes=labels) == (0.5, 0.5)


def test_a_proportion_of_none_or_all_is_no_certainty():
    """Wilson's interval equals the closed form for 0 of n: z^2 / (n + z^2)."""
    low, high = mean_interval(np.zeros(154))
    assert low == 0 and high == pytest.approx(1.96**2 / (154 + 1.96**2), abs=1e-4)
    assert mean_interval(np.ones(154)) == pytest.approx((1 - high, 1.0))
    # Five captions each of 60 images, all found: 60 images are the evidence, not 300 captions.
    together = mean_interval(np.ones(300), clusters=np.repeat(np.arange(60), 5))
    assert together == mean_interval(np.ones(60))
