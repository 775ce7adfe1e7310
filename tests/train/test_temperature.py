"""The temperature at its clamp: held there by the optimiser, and free to leave it again."""

import math

import pytest
import torch
from torch import nn

from filip.command import compose_config
from filip.models import DualEncoder, build_model, load_preset
from filip.train.config import TrainConfig
from filip.train.engine import make_optimizer


class MixedPrecision:
    """A working copy of the temperature in ``dtype`` over a float32 master that the optimiser steps, as ZeRO has it."""

    def __init__(self, dtype: torch.dtype, name: str) -> None:
        self.model: DualEncoder = build_model(load_preset("tiny"))
        overrides = ["run_dir=-", "out=-", f"optimizer.name={name}", "optimizer.base_lr=0.02"]
        self.optimizer = make_optimizer(self.model, compose_config(TrainConfig, overrides, "train"))
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
        optimizer = make_optimizer(model, compose_config(TrainConfig, overrides, "train"))
        before = float(model.logit_scale)
        model.scale().sum().backward()
        optimizer.step()
        steps[factor] = before - float(model.logit_scale)
    assert steps[0.1] == pytest.approx(0.1 * steps[1.0], rel=1e-3)
