"""Paired differences find an effect that marginal intervals hide, and none where there is none."""

import textwrap
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from filip.eval.metrics import mean_interval
from filip.eval.outcomes import Outcomes, Record, read_outcomes, write_outcomes
from filip.report.differences import (
    LEVEL,
    Resampled,
    _variance_by_images,
    differences,
    holm,
    over_trainings,
    p_over_trainings,
)

IMAGES = 800


def hits(rng: np.random.Generator, difficulty: np.ndarray, gain: float = 0.0) -> np.ndarray:
    """Draw a run's hits: an image succeeds by its difficulty (shared by all runs), a few more at random by ``gain``."""
    flipped = rng.random(len(difficulty)) < 0.02  # the difference between two runs of equal quality
    result = np.where(flipped, ~difficulty, difficulty)
    return (result | (rng.random(len(difficulty)) < gain)).astype(float)


def record(values: np.ndarray, name: str = "set", cluster: list[str] | None = None) -> Record:
    return {name: Outcomes.of([f"s{i:07d}" for i in range(len(values))], {"top1": values}, cluster)}


def test_a_paired_effect_that_marginal_intervals_hide_is_found() -> None:
    rng = np.random.default_rng(0)
    difficulty = rng.random(IMAGES) < 0.3
    base, ours = hits(rng, difficulty), hits(rng, difficulty, gain=0.04)
    assert mean_interval(ours)[0] < mean_interval(base)[1]  # the marginal intervals overlap
    (result,) = differences([record(ours)], [record(base)])
    assert result.p_adjusted < 0.05 and result.interval[0] > 0
    assert result.interval[0] <= result.effect <= result.interval[1]
    assert result.effect == pytest.approx(ours.mean() - base.mean(), abs=1e-6)
    (reverse,) = differences([record(base)], [record(ours)])
    assert reverse.p_adjusted < 0.05 and reverse.effect == pytest.approx(-result.effect)


def test_runs_of_equal_quality_do_not_differ() -> None:
    """A few of 24 columns without an effect have p < 0.05 by chance; after Holm's correction hardly ever one has."""
    false = uncorrected = 0
    for trial in range(10):
        rng = np.random.default_rng(trial)
        ours: Record = {}
        base: Record = {}
        for column in range(24):
            difficulty = rng.random(200) < 0.3
            ours |= record(hits(rng, difficulty), f"set{column}")
            base |= record(hits(rng, difficulty), f"set{column}")
        result = differences([ours], [base], resamples=1000)
        uncorrected += sum(d.p < 0.05 for d in result)
        false += any(d.p_adjusted < 0.05 for d in result)
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


def seeds(kind: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw what trainings differ by, with variance 1: normal, heavy tails, or one in ten that failed."""
    if kind == "normal":
        return rng.normal(size=shape)
    if kind == "heavy":
        return rng.standard_t(3, shape) / np.sqrt(3)
    return (rng.normal(size=shape) * 0.3 - 3 * (rng.random(shape) < 0.1)) / np.sqrt(0.09 + 0.81)


@pytest.mark.slow
@pytest.mark.parametrize("trainings", [3, 5, 10])
@pytest.mark.parametrize("kind", ["normal", "heavy", "failed"])
def test_without_an_effect_5_percent_are_below_5_percent_and_5_percent_of_tables_have_a_star(
    trainings: int, kind: str
) -> None:
    """There are 1,000 tables of 30 correlated columns; two runs differ by chance alone, half of it in the images.

    Trainings differ by a standard deviation of 0, 2, 5 and 10 points of accuracy over 1,000 images.
    """
    rng, shape, images = np.random.default_rng(trainings), (1000, 30), 0.25 / 1000
    by_chance, tables = [], []

    def correlated(kind: str, count: int) -> np.ndarray:
        shared, alone = seeds(kind, rng, (count, shape[0], 1)), seeds(kind, rng, (count, *shape))
        return np.sqrt(0.5) * (shared + alone)

    for spread in (0, 0.02, 0.05, 0.1):
        paired = spread * (correlated(kind, trainings) - correlated(kind, trainings))
        paired += correlated("normal", 1) * np.sqrt(images / 2)  # the images' own: equal in all trainings
        paired += rng.normal(size=paired.shape) * np.sqrt(images / 2)  # what a training makes of an image by chance
        flat = paired.reshape(trainings, -1)
        variance = np.full(flat.shape[1], images / 2)
        p_values = p_over_trainings(flat.mean(0), flat.std(0, ddof=1), trainings, variance)
        low, high, p_of_few = over_trainings(flat[:, :90], variance[:90])
        np.testing.assert_allclose(p_of_few, p_values[:90])
        assert np.array_equal(p_of_few < LEVEL, (low > 0) | (high < 0))
        by_chance.append(np.mean(p_values < LEVEL))
        tables.append(np.mean(30 * p_values.reshape(shape).min(1) < LEVEL))
    assert min(by_chance) > 0.015 and max(by_chance) < 0.06 and max(tables) < 0.065, (by_chance, tables)
    assert kind != "normal" or max(by_chance) > 0.045


def test_many_trainings_or_none_that_differ_give_the_tests_of_textbooks() -> None:
    rng = np.random.default_rng(0)
    paired = rng.normal(0.5, size=(4, 6))
    low, high, p_values = over_trainings(paired, np.zeros(6))
    plain = ttest_1samp(paired, 0)
    np.testing.assert_allclose(p_values, plain.pvalue, rtol=1e-6)
    np.testing.assert_allclose([low, high], plain.confidence_interval(), rtol=1e-6)
    _, high, p_values = over_trainings(np.zeros((4, 1)) + 1.96, np.ones(1))
    assert p_values[0] == pytest.approx(0.05, rel=0.05) and high[0] == pytest.approx(2 * 1.96, rel=0.01)


def test_what_a_training_makes_of_an_image_by_chance_counts_once() -> None:
    rng = np.random.default_rng(0)
    weights = rng.multinomial(500, np.full(500, 1 / 500), size=4000) / 500  # resampled images
    own, chance = rng.normal(size=500), 2 * rng.normal(size=(5, 500, 1))
    drawn = np.einsum("ri,sic->rsc", weights, own[:, None] + chance)
    assert _variance_by_images(drawn)[0] == pytest.approx(own.var() / 500, rel=0.35)  # chance alone: 4 / 5 of it more


@pytest.mark.parametrize(("trainings", "spread"), [(3, 0.0), (3, 0.05), (10, 0.01)])
def test_intervals_over_trainings_cover_what_they_promise(trainings: int, spread: float) -> None:
    """There are 500 comparisons of runs that differ by 4 points, with trainings that differ by chance."""
    rng, count, images, effect = np.random.default_rng(trainings), 500, 120, 0.04
    # An image that is easier for one run than for the other is so in all trainings.
    difficulty = rng.normal(0.5, 0.2, (count, 1, images))
    easier = 0.1 * rng.normal(size=(2, count, 1, images))
    level = spread * rng.normal(size=(2, count, trainings, 1)) + np.array([effect, 0])[:, None, None, None]
    ours, base = (rng.random((2, count, trainings, images)) < difficulty + easier + level).astype(float)
    keys = [f"s{i:03d}" for i in range(images)]
    records = [
        [{"set": Outcomes.of(keys, {f"m{n:03d}": row for n, row in enumerate(side[:, t])})} for t in range(trainings)]
        for side in (ours, base)
    ]
    # Probabilities outside 0 and 1 bend the effect a little: the true one is measured without trainings.
    true = np.clip(difficulty + easier[0] + effect, 0, 1).mean() - np.clip(difficulty + easier[1], 0, 1).mean()
    result = differences(*records, resamples=400)
    assert np.mean([d.interval[0] <= true <= d.interval[1] for d in result]) > 0.94


def test_of_the_columns_the_primary_ones_are_tested_together() -> None:
    rng = np.random.default_rng(4)
    difficulty = rng.random(IMAGES) < 0.3
    ours, base = (
        [record(hits(rng, difficulty, gain), "a") | record(hits(rng, difficulty, gain), "b") for _ in range(5)]
        for gain in (0.2, 0.0)
    )
    drawn = Resampled({"ours": ours, "base": base}, {"a": ["a/top1"], "b": ["b/top1"]}, 400)
    a, b = drawn.difference("ours", "base", primary=["a"], family=4)
    assert a.p_adjusted == pytest.approx(4 * a.p) and a.tested and not b.tested and not b.holds


def test_trainings_are_a_second_level() -> None:
    """A gain of one lucky training does not hold once others of the same run lack it."""
    rng = np.random.default_rng(5)
    difficulty = rng.random(IMAGES) < 0.3
    base = [record(hits(rng, difficulty)) for _ in range(5)]
    lucky = [record(hits(rng, difficulty, gain)) for gain in (0.09, 0.0, 0.0, 0.0, 0.0)]
    steady = [record(hits(rng, difficulty, 0.15)) for _ in range(5)]
    assert differences(lucky[:1], base[:1])[0].p_adjusted < 0.05
    assert not differences(lucky, base)[0].holds
    result = differences(steady, base)[0]
    assert result.holds and result.trainings == 5


def test_of_fewer_than_five_trainings_nothing_holds() -> None:
    rng = np.random.default_rng(7)
    difficulty = rng.random(IMAGES) < 0.3
    base = [record(hits(rng, difficulty)) for _ in range(5)]
    ours = [record(hits(rng, difficulty, 0.15)) for _ in range(5)]
    results = [differences(ours[:n], base[:n])[0] for n in (1, 4, 5)]
    assert [d.holds for d in results] == [False, False, True] and max(d.p_adjusted for d in results) < 0.05


def test_pairs_are_found_by_key_whatever_the_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    ours, base = (rng.random(40) < 0.5 for _ in range(2))
    shuffled = rng.permutation(40)
    keys = np.array([f"s{i:07d}" for i in range(40)])
    moved = {"set": Outcomes.of(list(keys[shuffled]), {"top1": base[shuffled]})}
    write_outcomes(tmp_path / "zero_shot" / "all.json", moved)
    moved = read_outcomes(tmp_path / "zero_shot" / "all.json")
    assert differences([record(ours)], [moved]) == differences([record(ours)], [record(base)])


def test_the_python_of_the_page_prints_what_was_planted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(3)
    base = rng.random(400) < 0.4
    for run, values in {"clip": base, "filip": np.maximum(base, rng.random(400) < 0.3)}.items():
        write_outcomes(
            tmp_path / f"results/demo/eval/{run}/retrieval/demo_scenes_new.json", record(values.astype(float))
        )
    page = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
    block = page[page.index("      from filip.eval.outcomes") :].partition("\n\n")[0]
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(block), {})
    column, effect, *_ = capsys.readouterr().out.split()
    assert column == "set/top1" and float(effect) > 0.05


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
