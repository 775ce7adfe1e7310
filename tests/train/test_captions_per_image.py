"""Several captions of an image in one batch (``data.captions_per_image``): all positives, the image encoded once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from filip.errors import UserError
from filip.models import build_model, load_preset
from filip.tokenizer import tokenize
from filip.train.engine import resolve_batching
from filip.train.losses import Loss, resolve_weights
from tests.support.training import compose, largest_difference, losses, run_many, series, train_arguments


@pytest.mark.parametrize("interaction", ["token_wise", "pooled"])
def test_an_image_counts_as_if_it_were_in_the_batch_once_for_each_caption(interaction: str) -> None:
    torch.manual_seed(0)
    config = compose("model=tiny", f"model.interaction={interaction}")
    model = build_model(config.model)
    size = load_preset("tiny").image.image_size
    pixels = torch.randn(3, 3, size, size)
    ids, lengths = tokenize(
        ["a dog", "a hound in the snow", "a cat", "a cat sleeps", "a bus", "an old red bus"]
    )
    group = torch.tensor([5, 5, 6, 6, 7, 7])
    loss = Loss(resolve_weights(config.loss, interaction), config)

    def result(pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        value = loss(model(pixels, ids, lengths), group, 0).loss
        return value, torch.autograd.grad(value, list(model.parameters()), allow_unused=True)

    once, gradients = result(pixels)
    twice, expected = result(pixels.repeat_interleave(2, dim=0))
    torch.testing.assert_close(once, twice)
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_ranks_and_gradient_caching_change_nothing(squares: Path, tmp_path: Path) -> None:
    def arguments(name: str, *overrides: str) -> list[str]:
        return train_arguments(
            squares, tmp_path / name, "max_steps=6", "data.captions_per_image=2", *overrides
        )

    assert run_many(
        1, [arguments("one"), arguments("single", "data.captions_per_image=1")], tmp_path / "1.log"
    ) == [0, 0]
    double = [
        arguments("two"),
        arguments("cached", "zero_stage=3", "gradient_cache=4"),
        arguments("ring", "exchange=ring"),
    ]
    assert run_many(2, double, tmp_path / "2.log") == [0, 0, 0]
    reference = losses(tmp_path / "one")
    for name in ("two", "cached", "ring"):
        assert losses(tmp_path / name)[:4] == pytest.approx(reference[:4], abs=1e-5), name
        assert largest_difference(tmp_path / "one", tmp_path / name) < 2e-3, name
    # half as many images a step are half of an epoch
    one, single = (series(tmp_path / name, "epoch")[-1] for name in ("one", "single"))
    assert one == pytest.approx(single / 2, abs=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="captions_per_image=2 needs soft_targets=true"):
        compose("data.captions_per_image=2", "soft_targets=false")
    with pytest.raises(UserError, match=r"data\.captions_per_image=0"):
        compose("data.captions_per_image=0")
    with pytest.raises(UserError, match="captions_per_image=5 must divide the 24 pairs"):
        resolve_batching(compose("global_batch=96", "data.captions_per_image=5"), 4)
    with pytest.raises(UserError, match="captions_per_image=2 must divide the 3 pairs"):
        resolve_batching(compose("global_batch=96", "data.captions_per_image=2", "gradient_cache=3"), 4)
