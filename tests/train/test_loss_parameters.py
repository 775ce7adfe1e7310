"""Terms that learn parameters or need a second view of a model: in its file, in fine-tuning, under ZeRO."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from filip.common.errors import UserError
from filip.models import build_model, load_model, load_preset, save_model
from filip.train.loop import initial_model
from filip.train.losses import Loss
from tests.support.training import compose, largest_difference, losses, run_many, same_weights, series, train_arguments
from tests.train.loss_batches import settings


def test_they_are_saved_with_the_model_and_evaluation_does_without(tmp_path: Path) -> None:
    model = build_model(load_preset("tiny"))
    loss = Loss({"sigmoid": 1.0}, settings())
    model.set_loss_parameters(loss.parameters(model))
    assert set(model.loss_parameters()) == {"sigmoid_bias"}
    assert torch.equal(model.loss_parameters()["sigmoid_bias"].detach(), torch.tensor([-10.0]))
    with torch.no_grad():
        model.loss_parameters()["sigmoid_bias"].fill_(-3)
    save_model(tmp_path / "model.safetensors", model)
    evaluated = load_model(tmp_path / "model.safetensors")
    assert not evaluated.loss_parameters()
    assert evaluated.state_dict().keys() == build_model(load_preset("tiny")).state_dict().keys()
    tuned = load_model(tmp_path / "model.safetensors", loss_parameters=True)
    assert float(loss.parameters(tuned)["sigmoid_bias"].detach()) == -3
    # Another loss needs others: what it does not use must not stay, since DeepSpeed would wait for its gradient.
    tuned.set_loss_parameters(Loss({"pooled": 1.0}, settings()).parameters(tuned))
    assert not tuned.loss_parameters()


@pytest.mark.slow
def test_they_train_under_zero_and_with_gradient_caching_as_on_one_process(squares: Path, tmp_path: Path) -> None:
    overrides = (
        "max_steps=4",
        "loss.sigmoid=0.5",
        "loss.token_wise_sigmoid=switch from 0 to 1 at step 2",
        "optimizer.warmup_steps=1",
    )

    def arguments(name: str, *more: str) -> list[str]:
        return train_arguments(squares, tmp_path / name, *overrides, *more)

    assert run_many(1, [arguments("one")], tmp_path / "one.log") == [0]
    double = [
        arguments("zero1", "zero_stage=1", "exchange=ring"),
        arguments("zero3", "zero_stage=3", "gradient_cache=4"),
    ]
    assert run_many(2, double, tmp_path / "two.log") == [0, 0]
    reference = losses(tmp_path / "one")
    assert series(tmp_path / "one", "loss_weight/token_wise_sigmoid") == [0, 0, 1, 1]
    saved = load_file(tmp_path / "one" / "model.safetensors")
    assert {float(saved[f"loss_{name}_bias"]) for name in ("sigmoid", "token_wise_sigmoid")}.isdisjoint({-10.0})
    for name in ("zero1", "zero3"):
        assert losses(tmp_path / name) == pytest.approx(reference, abs=1e-4), name
        assert largest_difference(tmp_path / "one", tmp_path / name) < 2e-3, name


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
    with pytest.raises(UserError, match=r"loss\.pooled=-1"):
        compose("loss.pooled=-1")
