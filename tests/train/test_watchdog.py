"""Alerts, each by the numbers that are ill in its way, and the measures of embeddings that they read."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from filip.models import Encoded, TextFeatures
from filip.train.watchdog import Limits, StepStatus, Watchdog, effective_rank, inspect, spread_over_ranks
from tests.support.ranks import Cases, run_cases

GOOD = {
    "loss": 2.0, "grad_norm": 1.0, "logit_scale": 20.0, "loss_scale": 65536.0, "skipped": False, "lr": 1e-3,
}  # fmt: skip


def kinds(steps: list[dict], fp16: bool = False, limits: Limits | None = None) -> list[tuple[str, int, int]]:
    watchdog = Watchdog(fp16=fp16, limits=limits)
    results = []
    for i, changes in enumerate(steps, start=1):
        results += watchdog.observe(StepStatus(step=i, **{**GOOD, **changes}))
    return [(f.kind, f.first, f.last) for f in results]


@pytest.mark.parametrize("bad", [{"loss": math.nan}, {"grad_norm": math.inf}])
def test_each_condition_is_named_once_with_its_steps(bad: dict) -> None:
    kind = "non-finite"
    assert kinds([{}, {}, bad, bad, bad, bad, {}]) == [(kind, 3, 5)]
    assert kinds([bad, bad, {}, bad, bad]) == []  # never three in a row
    assert kinds([bad, bad, bad, {}, bad, bad, bad]) == [(kind, 1, 3), (kind, 5, 7)]


def test_overflows_that_the_scaler_skips_are_no_alert_until_the_scale_has_collapsed() -> None:
    overflow = {"skipped": True, "grad_norm": math.inf, "loss_scale": 1024.0}
    assert kinds([overflow] * 20, fp16=True) == []
    collapsed = {**overflow, "loss_scale": 1.0}
    assert kinds([overflow, collapsed, collapsed], fp16=True) == [("loss scale collapsed", 2, 2)]
    assert kinds([overflow, collapsed, collapsed], fp16=True, limits=Limits(non_finite_steps=2))[1:] == [
        ("non-finite", 2, 3)
    ]


def test_a_discarded_step_is_bad_where_no_scaler_is_at_work() -> None:
    assert kinds([{}, *[{"skipped": True, "grad_norm": None}] * 3], limits=Limits(non_finite_steps=2)) == [
        ("non-finite", 2, 3)
    ]


@pytest.mark.parametrize("metrics", [{"tokens/image_rank": 60.0, "tokens/text_rank": 1.5}, {"vectors/image_rank": 1.0}])
def test_a_collapse_is_named_by_the_steps_that_look_at_the_embeddings(metrics: dict) -> None:
    kind, limits = "embeddings collapsed", Limits(collapse_checks=3)
    ill = {"metrics": metrics}
    assert kinds([{}, ill, {}, {}, ill, {}, ill, ill], limits=limits) == [(kind, 2, 7)]
    well = {"metrics": {name: 0.5 if "share" in name else 50.0 for name in metrics}}
    assert kinds([ill, ill, well, ill, ill], limits=limits) == []


def test_ranks_with_different_gradient_norms_are_named_at_once() -> None:
    assert kinds([{"grad_norm_spread": 1e-7}, {}, {"grad_norm_spread": 0.02}]) == [
        ("ranks disagree on the gradient norm", 3, 3)
    ]


def test_nothing_is_good_while_a_non_finite_stretch_runs() -> None:
    watchdog = Watchdog(False)
    watchdog.observe(StepStatus(step=1, **GOOD))
    assert watchdog.healthy
    watchdog.observe(StepStatus(step=2, **{**GOOD, "loss": math.nan}))
    assert not watchdog.healthy
    watchdog.observe(StepStatus(step=3, **GOOD))
    assert watchdog.healthy


SCALE = torch.tensor([10.0])
D = 32


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed)), dim=-1)


def monitors(image: Tensor, text: Tensor, words: int) -> dict[str, float]:
    encoded = Encoded(image, TextFeatures(text, torch.full((len(image),), words)), SCALE)
    return {name: float(value) for name, value in inspect(encoded).items()}


def test_healthy_embeddings_are_far_from_every_alarm() -> None:
    result = monitors(unit(16, 9), unit(16 * 6, seed=1), 6)
    assert result["tokens/bos_eos_share"] < 0.6 and result["tokens/same_patch_share"] < 0.5
    assert result["tokens/winner_entropy"] > 0.9
    assert min(result["tokens/image_rank"], result["tokens/text_rank"]) > 20


def test_one_patch_that_every_word_points_at_is_seen() -> None:
    axes = torch.eye(D)
    image = axes[:9].repeat(4, 1, 1)
    text = F.normalize(axes[4] + 0.1 * unit(4 * 6), dim=-1)  # every word resembles the patch at position 4
    result = monitors(image, text, 6)
    assert result["tokens/same_patch_share"] == 1 and result["tokens/winner_entropy"] == 0


def test_patches_that_point_at_the_ends_of_a_caption_are_seen() -> None:
    axes = torch.eye(D)
    caption = axes[[0, 1, 2, 3]]
    ends = torch.stack([axes[0], axes[3], axes[0], axes[1]])
    assert monitors(ends[None], caption, 4)["tokens/bos_eos_share"] == pytest.approx(3 / 4)
    assert monitors(axes[[1, 2]][None], caption, 4)["tokens/bos_eos_share"] == 0


def test_the_effective_rank_counts_directions() -> None:
    assert float(effective_rank(torch.eye(D)[:7])) == pytest.approx(7)
    assert float(effective_rank(torch.eye(D)[[3] * 50])) == pytest.approx(1, abs=1e-3)
    two = torch.cat([torch.eye(D)[[0] * 20], torch.eye(D)[[1] * 20]])
    assert float(effective_rank(two)) == pytest.approx(2, abs=1e-3)
    assert float(effective_rank(torch.zeros(4, D))) == pytest.approx(1)


def test_embeddings_that_are_not_finite_do_not_stop_the_run() -> None:
    image = unit(4, 9)
    image[2, 3, 5] = math.nan
    result = monitors(image, unit(4 * 6, seed=1), 6)
    assert math.isnan(result["tokens/image_rank"]) and result["tokens/text_rank"] > 10
    everything = monitors(torch.full((2, 3, D), math.nan), torch.full((8, D), math.nan), 4)
    assert math.isnan(everything["tokens/text_rank"])


def spread_cases(ranks: int) -> Cases:
    return {
        "equal": partial(spread_is, norms=[2.0, 2.0], expected=0.0),
        "different": partial(spread_is, norms=[2.0, 1.5], expected=0.25),
        "not finite": partial(spread_is, norms=[2.0, math.inf], expected=0.0),
    }


def spread_is(rank: int, ranks: int, *, norms: list[float], expected: float) -> None:
    assert spread_over_ranks(norms[rank], torch.device("cpu")) == pytest.approx(expected)


@pytest.mark.slow
def test_the_spread_of_the_gradient_norm_is_that_over_the_ranks(tmp_path: Path) -> None:
    failures = run_cases(spread_cases, 2, tmp_path)
    assert not any(failures.values()), failures
