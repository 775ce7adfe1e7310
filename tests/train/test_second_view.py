"""Terms that need a second view of a model: tokens of one that scores by vectors."""

from pathlib import Path

import pytest

from filip.common.errors import UserError
from filip.models import load_model
from filip.train.loop import initial_model
from tests.support.training import compose, losses, run_many, same_weights, train_arguments


@pytest.mark.slow
def test_a_model_that_scores_by_vectors_can_train_its_tokens_too(squares: Path, tmp_path: Path) -> None:
    """The interaction says only how the finished model compares."""
    terms = ("loss.pooled=0.5", "loss.token_wise=1", "max_steps=6")
    runs = [
        train_arguments(squares, tmp_path / "tokens", *terms),
        train_arguments(squares, tmp_path / "vectors", *terms, "model.interaction=pooled"),
        train_arguments(squares, tmp_path / "cached", *terms, "model.interaction=pooled", "gradient_cache=6"),
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
