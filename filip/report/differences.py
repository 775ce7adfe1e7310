"""Is one run better than another? Differences over the same images, with intervals, instead of two separate intervals.

Runs see the same images, so most of the variation of their accuracies is shared: an image that is hard for one is hard
for the other. The interval of the *difference* leaves it out, and shows effects that overlapping marginal intervals
hide; correcting for the number of comparisons keeps out false ones.

    found = differences([ours], [baseline])         # outcomes of filip.eval, one entry per training
    for difference in found: print(difference.column, difference.effect, difference.interval, difference.holds)

:class:`Resampled` does the work: it draws images once for many runs, of which any two can then be compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from filip.common.errors import UserError
from filip.eval.outcomes import Outcomes, Record

LEVEL = 0.05
FEWEST = 5  # fewest trainings of a run from which a difference may be called more than chance
RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """A difference: the mean of one measure in our run minus that in the baseline.

    column: its name, "<group>/<measure>" of the outcomes unless others were given. effect and interval (95 %):
    fractions, not percentages. p: two-sided; p_adjusted: after Holm's correction, NaN for a column that is no primary
    one. n: queries; clusters: independent units among them (images, concepts); trainings: how many on each side.
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
    def tested(self) -> bool:
        """Return whether the column is a primary one."""
        return not np.isnan(self.p_adjusted)

    @property
    def holds(self) -> bool:
        """Return whether the difference is significant at 5 % after the correction, over at least FEWEST trainings."""
        return self.p_adjusted < LEVEL and self.trainings >= FEWEST


def differences(
    ours: Sequence[Record],
    baseline: Sequence[Record],
    columns: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Difference]:
    """Compare two runs on every column that both have, or on ``columns`` ("<group>/<measure>").

    ours, baseline: the outcomes of each training (:func:`filip.eval.outcomes.read_outcomes`), in the same order of
    seeds; one each where there is one training. Raises UserError if the numbers of trainings differ, if a column is
    missing, or if the runs were evaluated on different images.
    """
    shared = shared_columns([*ours, *baseline])
    chosen = shared if columns is None else list(columns)
    if missing := [name for name in chosen if name not in shared]:
        raise UserError(f"no outcomes of {missing[0]} in every training; there are {', '.join(shared) or 'none'}")
    runs = {"ours": ours, "baseline": baseline}
    return Resampled(runs, {name: [name] for name in chosen}, resamples, seed).difference("ours", "baseline")


def shared_columns(records: Sequence[Record]) -> list[str]:
    """Return the columns ("<group>/<measure>") that every one of the records has."""
    names = [[f"{group}/{measure}" for group, r in record.items() for measure in r.values] for record in records]
    return [name for name in names[0] if all(name in others for others in names)] if names else []


def holm(p_values: Sequence[float], family: int = 0) -> list[float]:
    """Adjust p-values (Holm 1979): the chance of any false discovery among them stays below the level.

    family: how many are tested in all, where those of other tables are not among these: each is then adjusted at least
    as much as it would be among them all.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (max(family, len(p_values)) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


class Resampled:
    """Means of several runs over resampled images: drawn once for all runs, so that any two compare in pairs.

    runs: {name: the outcomes of each of its trainings, in order of seeds}. columns: {name: the outcomes
    ("<group>/<measure>") that it is the plain mean of}: one, or several for an average over benchmarks. Clusters that
    benchmarks share (concepts, the two directions of retrieval) are drawn for all benchmarks of an average together.

    Raises UserError if a column is missing in a training, or if the runs were evaluated on different images.
    """

    def __init__(
        self,
        runs: Mapping[str, Sequence[Record]],
        columns: Mapping[str, Sequence[str]],
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> None:
        self.columns, self.runs = list(columns), set(runs)
        self._members: dict[str, slice] = {}
        records: list[Record] = []
        for name, trainings in runs.items():
            self._members[name] = slice(len(records), len(records) + len(trainings))
            records += trainings
        self._seed = seed
        shape = (len(records), len(columns))
        self._measured = np.empty(shape)
        self._drawn = np.empty((resamples, *shape), dtype=np.float32)
        self._counts: dict[str, tuple[int, int]] = {}
        by_size: dict[int, list[tuple[list[int], list[_Benchmark]]]] = {}
        by_groups: dict[tuple[str, ...], list[str]] = {}  # columns that average over the same groups are drawn together
        for name, outcomes in columns.items():
            by_groups.setdefault(tuple(outcome.rpartition("/")[0] for outcome in outcomes), []).append(name)
        for groups, names in by_groups.items():
            place = [self.columns.index(name) for name in names]
            sets = [_Benchmark(group, records, [columns[name] for name in names]) for group in groups]
            named = np.unique(np.concatenate([found.cluster for found in sets]))
            for found in sets:
                found.number(named)
            clusters = len(named)
            by_size.setdefault(clusters, []).append((place, sets))
            self._measured[:, place] = np.mean([found.means() for found in sets], axis=0)
            queries = sum(len(found.key) for found in sets)
            self._counts |= dict.fromkeys(names, (queries, clusters))
        # columns with equally many clusters share their draws: no harm, less time
        for clusters, together in by_size.items():
            for start, weights in _draws(np.random.default_rng(seed), clusters, resamples):
                for place, sets in together:
                    means = np.mean([found.means(weights) for found in sets], axis=0)
                    self._drawn[start : start + len(weights), :, place] = means

    def difference(
        self,
        ours: str,
        baseline: str,
        columns: Sequence[str] | None = None,
        primary: Collection[str] | None = None,
        family: int = 0,
    ) -> list[Difference]:
        """Return one run minus another, in all columns or in ``columns``.

        p is corrected (Holm) over the primary columns among them, by default all; ``family``: the number of primary
        columns, also of other tables. Several trainings of each are paired by their order (a seed gives the same data
        in the same order). Raises UserError if the runs have different numbers of trainings.
        """
        chosen = self.columns if columns is None else list(columns)
        a, b = self._members[ours], self._members[baseline]
        trainings = a.stop - a.start
        if not trainings or trainings != b.stop - b.start:
            raise UserError(
                f"the runs have {trainings} and {b.stop - b.start} trainings: give both equally many, at least one"
            )
        place = [self.columns.index(name) for name in chosen]
        measured = (self._measured[a] - self._measured[b])[:, place]
        drawn = self._drawn[:, a][:, :, place].astype(float) - self._drawn[:, b][:, :, place]
        if trainings == 1:
            low, high, p_values = _over_images(drawn[:, 0])
        else:
            low, high, p_values = over_trainings(measured, _variance_by_images(drawn))
        tested = [n for n, name in enumerate(chosen) if primary is None or name in primary]
        adjusted = np.full(len(chosen), np.nan)
        adjusted[tested] = holm(p_values[tested].tolist(), family)
        effects = measured.mean(0)
        differences = []
        for n, name in enumerate(chosen):
            queries, clusters_of_it = self._counts[name]
            interval = (float(low[n]), float(high[n]))
            p = float(p_values[n])
            differences.append(
                Difference(name, float(effects[n]), interval, p, float(adjusted[n]), queries, clusters_of_it, trainings)
            )
        return differences

    def interval(self, run: str, column: str) -> tuple[float, float]:
        """Return the 95 % interval of a column's mean in one run over images, or of its trainings' mean."""
        means = self._drawn[:, self._members[run], self.columns.index(column)].mean(1)
        low, high = np.percentile(means, [2.5, 97.5])
        return float(low), float(high)


class _Benchmark:
    """One group of outcomes in all trainings: for each cluster its number of queries, and sums over them."""

    def __init__(self, group: str, records: Sequence[Record], columns: Sequence[Sequence[str]]) -> None:
        by_group = [[name for name in column if name.rpartition("/")[0] == group] for column in columns]
        measures = [names[0].rpartition("/")[2] for names in by_group]
        missing = [m for m in measures if any(group not in r or m not in r[group].values for r in records)]
        if missing:
            raise UserError(f"no outcomes of {group}/{missing[0]} in every training")
        self.key = records[0][group].key
        # an image is its benchmark's own cluster; a concept, which no key names, is shared by all
        own, cluster = np.char.startswith(self.key, records[0][group].cluster), records[0][group].cluster
        self.cluster = np.where(own, np.char.add(f"{group.partition('.')[0]}/", cluster), cluster)
        self.values = np.stack(
            [[_in_order(record[group], m, self.key, group) for m in measures] for record in records]
        )  # [trainings, columns, queries]
        self.sums = self.counts = np.empty(0)

    def number(self, clusters: np.ndarray) -> None:
        """Add up by cluster; ``clusters``: all names, sorted, of this and the benchmarks averaged with it."""
        index = np.searchsorted(clusters, self.cluster)
        flat = self.values.reshape(-1, self.values.shape[-1])
        self.sums = np.stack([np.bincount(index, weights=v, minlength=len(clusters)) for v in flat], axis=1)
        self.counts = np.bincount(index, minlength=len(clusters)).astype(float)

    def means(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Return [trainings, columns], or [draws, trainings, columns] with how often each draw has each cluster."""
        if weights is None:
            return self.values.mean(-1)
        total = np.maximum(weights @ self.counts, 1.0)
        return (weights @ self.sums / total[:, None]).reshape(len(weights), *self.values.shape[:2])


def _draws(rng: np.random.Generator, clusters: int, resamples: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield how often each cluster is in each resample: (first, [some resamples, clusters]), until all are drawn."""
    step = max(1, 4_000_000 // clusters)  # 32 MB at a time
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(0, clusters, size=(size, clusters)) + clusters * np.arange(size)[:, None]
        yield (start, np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters).astype(float))


def _over_images(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ends of the 95 % interval and p of each column, from resampled differences [draws, columns]."""
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    tails = np.minimum((drawn <= 0).sum(0), (drawn >= 0).sum(0))
    return low, high, np.minimum(1.0, 2 * (1 + tails) / (1 + len(drawn)))


def _variance_by_images(drawn: np.ndarray) -> np.ndarray:
    """Return the variance of the mean over trainings [columns] by the choice of images alone.

    drawn: [draws, trainings, columns]. What a training makes of an image by chance varies the mean of n trainings over
    the draws, too, by 1/n of what it varies one of them; it is in the spread of the trainings already.
    """
    of_mean, mean_of_each = drawn.mean(1).var(0, ddof=1), drawn.var(0, ddof=1).mean(0)
    return np.maximum(0, of_mean - (mean_of_each - of_mean) / (drawn.shape[1] - 1))


def over_trainings(paired: np.ndarray, image_variance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ends of the 95 % interval and p of each column, for other trainings and other images.

    paired: the measured differences [trainings, columns], or the levels of one run. image_variance [columns]: the
    variance of their mean by the choice of images alone. p is :func:`p_over_trainings`'s, and 0.05 at the ends.
    """
    spread, effect = paired.std(0, ddof=1), paired.mean(0)
    low = np.zeros_like(effect)
    high = stdtrit(len(paired) - 1, 0.975) * np.sqrt(spread**2 / len(paired) + image_variance)  # never too small
    for _ in range(40):
        half = (low + high) / 2
        inside = p_over_trainings(half, spread, len(paired), image_variance) > LEVEL
        low, high = np.where(inside, half, low), np.where(inside, high, half)
    return effect - high, effect + high, p_over_trainings(effect, spread, len(paired), image_variance)


def p_over_trainings(effect: np.ndarray, spread: np.ndarray, trainings: int, image_variance: np.ndarray) -> np.ndarray:
    """Return the two-sided p of mean differences [columns], for other trainings and other images.

    spread: the standard deviation of the few trainings, whose error is Student's t. The images' is normal. The sum of
    the two is integrated (Behrens and Fisher's problem), since one t with Satterthwaite's degrees of freedom is wrong
    where a few trainings agree by luck. Without an effect 2 to 5 % of p are below 0.05.
    """
    by_trainings = np.maximum(spread / trainings**0.5, 1e-12)[:, None]
    z = np.linspace(-8, 8, 321)
    density = np.exp(-(z**2) / 2)
    tail = stdtr(trainings - 1, (np.sqrt(image_variance)[:, None] * z - np.abs(effect)[:, None]) / by_trainings)
    return np.where(effect == 0, 1.0, 2 * tail @ density / density.sum())


def _in_order(found: Outcomes, measure: str, keys: np.ndarray, group: str) -> np.ndarray:
    order, target = np.argsort(found.key, kind="stable"), np.argsort(keys, kind="stable")
    if not np.array_equal(found.key[order], keys[target]):
        raise UserError(f"{group}: the runs were evaluated on different images; evaluate them on the same copy")
    values = np.empty(len(keys))
    values[target] = found.values[measure][order]
    return values
