"""Parameters that a term learns besides the towers: in the model's file, in fine-tuning, under ZeRO."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from filip.models import build_model, load_model, load_preset, save_model
from filip.train.losses import Loss
from tests.support.training import largest_difference, losses, run_many, series, train_arguments
from tests.train.loss_batches import settings


def test_they_are_saved_with_the_model_and_evaluation_does_without(tmp_path: Path) -> None:
    model = build_model(load_preset("tiny"))
    learned = settings(token_keep_ratio=0.25, token_score="learned")
    loss = Loss({"sigmoid": 1.0}, learned)
    model.set_loss_parameters(loss.parameters(model))
    assert set(model.loss_parameters()) == {"sigmoid_bias", "token_scorer_image", "token_scorer_text"}
    assert torch.equal(model.loss_parameters()["sigmoid_bias"].detach(), torch.tensor([-10.0]))
    with torch.no_grad():
        model.loss_parameters()["sigmoid_bias"].fill_(-3)
        model.loss_parameters()["token_scorer_text"].fill_(2)
    save_model(tmp_path / "model.safetensors", model)
    evaluated = load_model(tmp_path / "model.safetensors")
    assert not evaluated.loss_parameters()
    assert evaluated.state_dict().keys() == build_model(load_preset("tiny")).state_dict().keys()
    tuned = load_model(tmp_path / "model.safetensors", loss_parameters=True)
    assert float(loss.parameters(tuned)["sigmoid_bias"].detach()) == -3
    assert (loss.parameters(tuned)["token_scorer_text"] == 2).all()
    # Another loss needs others: what it does not use must not stay, since DeepSpeed would wait for its gradient.
    tuned.set_loss_parameters(Loss({"pooled": 1.0}, settings()).parameters(tuned))
    assert not tuned.loss_parameters()


@pytest.mark.slow
def test_they_train_under_zero_and_with_gradient_caching_as_on_one_process(squares: Path, tmp_path: Path) -> None:
    overrides = (
        "max_steps=4",
        "loss.sigmoid=0.5",
        "loss.sparc=0.5",
        "loss.text_conditioned=0.5",
        "loss.token_wise_sigmoid=switch from 0 to 1 at step 2",
        "token_keep_ratio=0.5",
        "token_score=learned",
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
    assert all(float(saved[f"loss_token_scorer_{side}"].abs().max()) > 1e-4 for side in ("image", "text"))
    query = saved["loss_text_conditioned_query"][0]
    assert float((query - query[0, 0] * torch.eye(len(query))).abs().max()) > 1e-4
    for name in ("zero1", "zero3"):
        assert losses(tmp_path / name) == pytest.approx(reference, abs=1e-4), name
        assert largest_difference(tmp_path / "one", tmp_path / name) < 2e-3, name
