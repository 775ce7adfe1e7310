"""Monitors of the embeddings: each is provoked by embeddings that are ill in its way."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from filip.models import Encoded, TextFeatures
from filip.train.monitors import effective_rank, inspect, spread_over_ranks
from tests.support.ranks import Cases, run_cases

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


def test_a_patch_of_its_own_for_every_image_is_seen_within_each() -> None:
    image = torch.eye(D)[:9].repeat(4, 1, 1)
    text = torch.eye(D)[torch.arange(4)].repeat_interleave(6, dim=0)  # all words of caption i: the patch at i
    result = monitors(image, text, 6)
    assert result["tokens/same_patch_share"] == 1
    assert result["tokens/winner_entropy"] == pytest.approx(math.log(4) / math.log(9))


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
