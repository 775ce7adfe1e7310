"""Is one run better than another? Differences over the same images, with intervals, instead of two separate intervals.

Runs see the same images, so most of the variation of their accuracies is shared: an image that is hard for one is hard
for the other. The interval of the *difference* leaves it out, and shows effects that overlapping marginal intervals
hide; correcting for the number of comparisons keeps out those that are not there.

    found = differences([ours], [baseline])         # outcomes of filip.eval, one entry per training
    for difference in found: print(difference.column, difference.effect, difference.interval, difference.holds)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from filip.errors import UserError
from filip.eval.outcomes import Outcomes, Record

LEVEL = 0.05
RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """The mean of one measure in our run less that in the baseline.

    column: "<group>/<measure>" of the outcomes. effect and interval (95 %): fractions, not percentages. p: two-sided;
    p_adjusted: after Holm's correction for the columns it was computed with. n: queries; clusters: independent units
    among them (images); trainings: of each side.
    """

    column: str
    effect: float
    interval: tuple[float, float]
    p: float
    p_adjusted: float
    n: int
    clusters: int
    trainings: int

    @property
    def holds(self) -> bool:
        """Whether the difference is significant at 5 % after the correction."""
        return self.p_adjusted < LEVEL


def differences(
    ours: Sequence[Record],
    baseline: Sequence[Record],
    columns: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Difference]:
    """Compare two runs on every column that both have, or on ``columns``.

    ours, baseline: the outcomes of each training (:func:`filip.eval.outcomes.read_outcomes`), in the same order of
    seeds; one each where there is one training. Raises UserError if the numbers of trainings differ, if a column is
    missing, or if the runs were evaluated on different images.
    """
    if not ours or len(ours) != len(baseline):
        raise UserError(
            f"{len(ours)} trainings of one run and {len(baseline)} of the other: differences need as many of each"
        )
    shared = [name for name in _columns(ours[0]) if all(name in _columns(r) for r in [*ours, *baseline])]
    chosen = shared if columns is None else list(columns)
    if missing := [name for name in chosen if name not in shared]:
        raise UserError(
            f"no outcomes of {missing[0]} in every training; there are {', '.join(shared) or 'none'}"
        )
    found = [_difference(name, ours, baseline, resamples, seed) for name in chosen]
    adjusted = holm([difference.p for difference in found])
    return [replace(d, p_adjusted=p) for d, p in zip(found, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): the chance of any false discovery among them stays below the level."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _columns(record: Record) -> list[str]:
    return [f"{group}/{measure}" for group, found in record.items() for measure in found.values]


def _difference(
    column: str, ours: Sequence[Record], baseline: Sequence[Record], resamples: int, seed: int
) -> Difference:
    group, _, measure = column.rpartition("/")
    first = ours[0][group]
    rows = []
    for one, other in zip(ours, baseline, strict=True):
        a, b = (_in_order(record[group], measure, first.key, group) for record in (one, other))
        rows.append(a - b)
    paired = np.stack(rows)  # [trainings, queries]
    _, index = np.unique(first.cluster, return_inverse=True)
    means = resampled_differences(paired, index, np.random.default_rng(seed), resamples)
    low, high = np.percentile(means, [2.5, 97.5])
    tail = min((means <= 0).sum(), (means >= 0).sum())
    p = min(1.0, 2 * (1 + int(tail)) / (1 + len(means)))
    return Difference(
        column,
        effect=float(paired.mean()),
        interval=(float(low), float(high)),
        p=p,
        p_adjusted=p,
        n=paired.shape[1],
        clusters=int(index.max()) + 1,
        trainings=len(paired),
    )


def _in_order(found: Outcomes, measure: str, keys: np.ndarray, group: str) -> np.ndarray:
    order, wanted = np.argsort(found.key, kind="stable"), np.argsort(keys, kind="stable")
    if not np.array_equal(found.key[order], keys[wanted]):
        raise UserError(
            f"{group}: the runs were evaluated on different images; evaluate them on the same copy"
        )
    values = np.empty(len(keys))
    values[wanted] = found.values[measure][order]
    return values


def resampled_differences(
    paired: np.ndarray, cluster: np.ndarray, rng: np.random.Generator, resamples: int
) -> np.ndarray:
    """Means of paired differences [trainings, queries] over resampled clusters and, with several, trainings.

    cluster: [queries] integers from 0. Clusters are drawn with replacement, all their queries together. The part in
    which trainings deviate from their mean is scaled by sqrt(s / (s - 1)), without which a bootstrap over s trainings
    is too narrow (Rao and Wu 1988).
    """
    trainings, clusters = len(paired), int(cluster.max()) + 1
    sums = np.stack([np.bincount(cluster, weights=row, minlength=clusters) for row in paired])
    counts = np.bincount(cluster, minlength=clusters).astype(float)
    means = np.empty(resamples)
    step = max(1, 2_000_000 // clusters)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(0, clusters, size=(size, clusters))
        total = counts[drawn].sum(1)
        by_training = np.stack([row[drawn].sum(1) / total for row in sums])  # [trainings, size]
        estimate = by_training.mean(0)
        if trainings > 1:
            times = rng.multinomial(trainings, np.full(trainings, 1 / trainings), size=size).T / trainings
            scale = np.sqrt(trainings / (trainings - 1))
            estimate = estimate + scale * ((times - 1 / trainings) * by_training).sum(0)
        means[start : start + size] = estimate
    return means
