"""CLIP's loss added to the token-wise one (``loss.pooled``): absent when off, exact over ranks when on."""

from pathlib import Path

import pytest

from filip.errors import UserError
from filip.models import load_model, load_preset
from filip.train.counts import count
from filip.train.engine import Batching
from filip.train.loop import initial_model
from tests.support.training import compose, losses, run_many, same_weights, train_arguments


@pytest.mark.slow
def test_a_model_that_scores_by_vectors_can_train_its_tokens_too(squares: Path, tmp_path: Path) -> None:
    """SPARC: the interaction says only how the finished model compares."""
    sparc = ("loss.pooled=0.5", "loss.sparc=1", "max_steps=6")
    runs = [
        train_arguments(squares, tmp_path / "tokens", *sparc, "loss.token_wise=0"),
        train_arguments(squares, tmp_path / "vectors", *sparc, "model.interaction=pooled"),
        train_arguments(squares, tmp_path / "cached", *sparc, "model.interaction=pooled", "gradient_cache=6"),
    ]
    assert run_many(1, runs, tmp_path / "log") == [0, 0, 0]
    assert losses(tmp_path / "vectors") == losses(tmp_path / "tokens")
    assert losses(tmp_path / "cached") == pytest.approx(losses(tmp_path / "tokens"), abs=1e-5)
    for name, interaction in (("tokens", "token_wise"), ("vectors", "pooled")):
        assert load_model(tmp_path / name / "model.safetensors").config.interaction == interaction
    assert same_weights(tmp_path / "tokens" / "model.safetensors", tmp_path / "vectors" / "model.safetensors")


def test_a_model_without_a_second_view_is_refused() -> None:
    with pytest.raises(UserError, match=r"loss\.token_wise reads tokens"):
        initial_model(compose("model=tiny", "model.interaction=pooled", "loss.pooled=0", "loss.token_wise=1"))
    headless = ("model.image.timm=vit_base_patch16_gap_224", "model.image.layers=1", "model.image.width=48")
    with pytest.raises(UserError, match="CLS"):
        initial_model(compose("model=tiny", *headless, "model.image.heads=2", "loss.pooled=1"))
    with pytest.raises(UserError, match=r"loss\.pooled=-1"):
        compose("loss.pooled=-1")


def test_it_has_a_place_in_the_count() -> None:
    off, on = (compose("model=base", f"loss.pooled={weight}") for weight in (0, 0.5))
    batching = Batching(global_batch=8192, per_rank=1024, accumulation=1, chunk=1024)
    plans = [count(load_preset("base"), config, batching, 8).memory for config in (off, on)]
    # Two logit matrices with their gradients, and the vectors of all ranks in fp16 and our own with gradients.
    logits, vectors = 2 * 2 * 4 * 1024 * 8192, 2 * 256 * (8192 * 2 + 1024 * 8)
    assert plans[1]["loss"] - plans[0]["loss"] == logits + vectors
    assert {**plans[1], "loss": 0} == {**plans[0], "loss": 0}
