"""The rate's schedule, the temperature's clamp, and LAMB against a float64 transcription of its definition."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from filip.cli.command import compose_config
from filip.common.errors import UserError
from filip.models import DualEncoder, build_model, load_preset
from filip.train.config import TrainConfig
from filip.train.lamb import Lamb, SliceLayout
from filip.train.optimizers import make_optimizer, make_schedule

LR, BETA1, BETA2, EPS, DECAY = 0.05, 0.9, 0.999, 1e-4, 0.03
SHAPES = {"matrix": (7, 5), "large": (40, 60), "scalar": (1,), "zeros": (6,), "no_gradient": (4,)}


def weights_and_gradients(steps: int):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    weights["zeros"][:] = 0
    weights["large"] *= 3  # norm about 147: beyond the clamp at 10
    gradients = [{name: rng.normal(size=shape) for name, shape in SHAPES.items()} for _ in range(steps)]
    for step in gradients:
        step["no_gradient"][:] = 0
    return weights, gradients


def reference(steps: int) -> dict[str, np.ndarray]:
    """Take steps in numpy float64, as the paper's implementation does."""
    weights, gradients = weights_and_gradients(steps)
    moments = {name: (np.zeros(shape), np.zeros(shape)) for name, shape in SHAPES.items()}
    for step in gradients:
        for name, w in weights.items():
            m, v = moments[name]
            m[:] = BETA1 * m + (1 - BETA1) * step[name]
            v[:] = BETA2 * v + (1 - BETA2) * step[name] ** 2
            update = m / (np.sqrt(v) + EPS) + DECAY * w
            weight_norm, update_norm = min(np.linalg.norm(w), 10.0), np.linalg.norm(update)
            w -= LR * (weight_norm / update_norm if weight_norm > 0 and update_norm > 0 else 1.0) * update
    return weights


def test_whole_parameters_follow_the_definition() -> None:
    weights, gradients = weights_and_gradients(6)
    tensors = {n: torch.nn.Parameter(torch.tensor(w, dtype=torch.float32)) for n, w in weights.items()}
    lamb = Lamb(tensors.values(), LR, (BETA1, BETA2), EPS, DECAY)
    for step in gradients:
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(step[name], dtype=torch.float32)
        lamb.step()
    for name, expected in reference(6).items():
        np.testing.assert_allclose(tensors[name].detach().numpy(), expected, rtol=2e-5, atol=2e-6, err_msg=name)


def test_a_flat_tensor_with_a_layout_gives_the_same_and_ignores_garbage_in_its_padding() -> None:
    weights, gradients = weights_and_gradients(6)
    names = tuple(weights)
    padding = torch.full((9,), float("nan"))
    flat = torch.nn.Parameter(
        torch.cat([torch.tensor(w, dtype=torch.float32).view(-1) for w in weights.values()] + [padding])
    )
    sizes = tuple(w.size for w in weights.values())
    lamb = Lamb([flat], LR, (BETA1, BETA2), EPS, DECAY)
    lamb.bind({flat: SliceLayout(names, (*sizes, 9), (*range(len(names)), -1), partitioned=False)})
    for step in gradients:
        pieces = [torch.tensor(step[name], dtype=torch.float32).view(-1) for name in names]
        flat.grad = torch.cat([*pieces, torch.full((9,), float("inf"))])
        lamb.step()
    expected = reference(6)
    for name, piece in zip(names, flat.detach()[:-9].split(list(sizes)), strict=True):
        np.testing.assert_allclose(piece.numpy(), expected[name].reshape(-1), rtol=2e-5, atol=2e-6, err_msg=name)


def test_norms_of_large_tensors_are_accurate() -> None:
    parameter = torch.nn.Parameter(torch.randn(1_500_000, generator=torch.Generator().manual_seed(0)) * 1e-3)
    exact = float(parameter.detach().double().norm())
    lamb = Lamb([parameter])
    lamb.bind({parameter: SliceLayout(("w",), (parameter.numel(),), (0,), partitioned=False)})
    parameter.grad = torch.ones_like(parameter)
    lamb.step()
    assert lamb.norms()["w"]["weight"] == pytest.approx(exact, rel=1e-6)


def test_a_tensor_that_was_not_bound_after_a_load_is_refused() -> None:
    known, unknown = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    lamb = Lamb([known, unknown])
    lamb.bind({known: SliceLayout(("w",), (3,), (0,), partitioned=False)})
    known.grad = unknown.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="bind"):
        lamb.step()
    with pytest.raises(RuntimeError, match="layout of 2"):
        lamb.bind({known: SliceLayout(("w",), (2,), (0,))})


def test_no_warm_up_is_allowed() -> None:
    schedule = make_schedule(1.0, 512, warmup_steps=0, steps=10)
    assert schedule.at(0) == 1.0
    assert schedule.at(5) == pytest.approx(0.5)


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(UserError, match="warmup_steps=3000"):
        make_schedule(1.0, 512, warmup_steps=3000, steps=600)


class MixedPrecision:
    """A working copy of the temperature in ``dtype`` over a float32 master that the optimiser steps, as ZeRO has it."""

    def __init__(self, dtype: torch.dtype, name: str) -> None:
        self.model: DualEncoder = build_model(load_preset("tiny"))
        overrides = ["run_dir=-", "out=-", f"optimizer.name={name}", "optimizer.base_lr=0.02"]
        self.optimizer = make_optimizer(self.model, compose_config(TrainConfig, overrides, "train").optimizer)
        self.master = self.model.logit_scale
        with torch.no_grad():
            self.master.fill_(math.log(90))
        self.model.logit_scale = nn.Parameter(self.master.detach().to(dtype))

    def step(self, sign: float) -> float:
        """Take one step whose loss is ``sign`` times the scale. Return the scale after it."""
        working = self.model.logit_scale
        working.grad = None
        (sign * self.model.scale()).sum().backward()
        assert working.grad is not None
        self.master.grad = working.grad.float()
        self.optimizer.step()
        with torch.no_grad():
            working.copy_(self.master)
        return self.model.scale().item()


@pytest.mark.parametrize("name", ["lamb", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_scale_at_its_clamp_comes_down_again_under_an_opposite_gradient(dtype: torch.dtype, name: str) -> None:
    training = MixedPrecision(dtype, name)
    upwards = [training.step(-1.0) for _ in range(30)]
    # 100.04 is float16's neighbour of log(100), 98.8 bfloat16's.
    assert all(98.8 < scale < 100.04 for scale in upwards[-5:])
    downwards = [training.step(1.0) for _ in range(60)]
    assert downwards[-1] < 90, downwards


def test_the_temperature_can_be_given_a_smaller_step() -> None:
    steps = {}
    for factor in (1.0, 0.1):
        model = build_model(load_preset("tiny"))
        overrides = ["run_dir=-", "out=-", f"optimizer.temperature_lr_factor={factor}"]
        optimizer = make_optimizer(model, compose_config(TrainConfig, overrides, "train").optimizer)
        before = float(model.logit_scale)
        model.scale().sum().backward()
        optimizer.step()
        steps[factor] = before - float(model.logit_scale)
    assert steps[0.1] == pytest.approx(0.1 * steps[1.0], rel=1e-3)
