"""Paired differences find an effect that marginal intervals hide, and none where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from filip.errors import UserError
from filip.eval.metrics import mean_interval
from filip.eval.outcomes import Outcomes, Record, read_outcomes, write_outcomes
from filip.report.differences import differences, holm

IMAGES = 800


def hits(rng: np.random.Generator, difficulty: np.ndarray, gain: float = 0.0) -> np.ndarray:
    """Hits of a run: an image succeeds by its difficulty (shared by all runs), a few more at random by ``gain``."""
    flipped = rng.random(len(difficulty)) < 0.02  # what differs between two runs of equal quality
    found = np.where(flipped, ~difficulty, difficulty)
    return (found | (rng.random(len(difficulty)) < gain)).astype(float)


def record(values: np.ndarray, name: str = "set", cluster: list[str] | None = None) -> Record:
    return {name: Outcomes.of([f"s{i:07d}" for i in range(len(values))], {"top1": values}, cluster)}


def test_a_paired_effect_that_marginal_intervals_hide_is_found() -> None:
    rng = np.random.default_rng(0)
    difficulty = rng.random(IMAGES) < 0.3
    base, ours = hits(rng, difficulty), hits(rng, difficulty, gain=0.04)
    assert mean_interval(ours)[0] < mean_interval(base)[1]  # the marginal intervals overlap
    (found,) = differences([record(ours)], [record(base)])
    assert found.holds and found.interval[0] > 0
    assert found.interval[0] <= found.effect <= found.interval[1]
    assert found.effect == pytest.approx(ours.mean() - base.mean(), abs=1e-6)
    (reverse,) = differences([record(base)], [record(ours)])
    assert reverse.holds and reverse.effect == pytest.approx(-found.effect)


def test_runs_of_equal_quality_do_not_differ() -> None:
    """Of 24 columns without an effect, a few have p < 0.05 by chance; after Holm's correction hardly ever one."""
    false = uncorrected = 0
    for trial in range(10):
        rng = np.random.default_rng(trial)
        ours: Record = {}
        base: Record = {}
        for column in range(24):
            difficulty = rng.random(200) < 0.3
            ours |= record(hits(rng, difficulty), f"set{column}")
            base |= record(hits(rng, difficulty), f"set{column}")
        found = differences([ours], [base], resamples=1000)
        uncorrected += sum(d.p < 0.05 for d in found)
        false += any(d.holds for d in found)
    assert uncorrected > 3 and false <= 2
    same = record(np.ones(50))
    (none,) = differences([same], [same])
    assert (none.effect, none.interval, none.p) == (0.0, (0.0, 0.0), 1.0)


def test_captions_of_an_image_count_as_one() -> None:
    rng = np.random.default_rng(3)
    per_image = hits(rng, rng.random(60) < 0.4, gain=0.1) - 0
    other = hits(np.random.default_rng(4), rng.random(60) < 0.4)
    image = [f"image {i}" for i in range(60) for _ in range(5)]
    five = [np.repeat(values, 5) for values in (per_image, other)]
    (alone,) = differences([record(five[0])], [record(five[1])])
    (together,) = differences([record(five[0], cluster=image)], [record(five[1], cluster=image)])
    assert together.clusters == 60 and together.n == alone.n == 300
    assert np.subtract(*together.interval[::-1]) > 1.8 * np.subtract(*alone.interval[::-1])


def test_trainings_are_a_second_level() -> None:
    """A gain of one lucky training does not hold once others of the same run lack it."""
    rng = np.random.default_rng(5)
    difficulty = rng.random(IMAGES) < 0.3
    base = [record(hits(rng, difficulty)) for _ in range(3)]
    lucky = [record(hits(rng, difficulty, gain)) for gain in (0.09, 0.0, 0.0)]
    steady = [record(hits(rng, difficulty, 0.05)) for _ in range(3)]
    assert differences(lucky[:1], base[:1])[0].holds
    assert not differences(lucky, base)[0].holds
    found = differences(steady, base)[0]
    assert found.holds and found.trainings == 3


def test_pairs_are_found_by_key_whatever_the_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    ours, base = (rng.random(40) < 0.5 for _ in range(2))
    shuffled = rng.permutation(40)
    keys = np.array([f"s{i:07d}" for i in range(40)])
    moved = {"set": Outcomes.of(list(keys[shuffled]), {"top1": base[shuffled]})}
    write_outcomes(tmp_path / "zero_shot.json", moved)
    moved = read_outcomes(tmp_path / "zero_shot.json")
    assert differences([record(ours)], [moved]) == differences([record(ours)], [record(base)])


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="evaluated on different images"):
        differences([record(np.ones(4))], [record(np.ones(5))])
    with pytest.raises(UserError, match="2 trainings of one run and 1 of the other"):
        differences([record(np.ones(4))] * 2, [record(np.ones(4))])
    with pytest.raises(UserError, match=r"no outcomes of set/top5 in every training; there are set/top1"):
        differences([record(np.ones(4))], [record(np.ones(4))], ["set/top5"])
    with pytest.raises(UserError, match="no outcomes at"):
        read_outcomes(tmp_path / "none.json")


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
