"""The temperature: similarities are multiplied by a scale, its inverse, of which the logarithm is learned.

``model.init_temperature`` is where it starts, ``model.max_logit_scale`` how large the scale may become, and
``optimizer.temperature_lr_factor`` how fast it moves (filip/train/optimizers.py has its parameter group).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def initial_logit_scale(temperature: float) -> nn.Parameter:
    """Return log(1 / temperature), with one element instead of zero dimensions: DeepSpeed partitions no scalars."""
    return nn.Parameter(torch.full((1,), -math.log(temperature)))


def scale_of(logit_scale: Tensor) -> Tensor:
    """Return the factor of the similarities, [1] float32.

    Not clamped here: the optimiser clamps the parameter to ``log(max_logit_scale)``, and its exponential exceeds the
    maximum by rounding (100.0000076 in float32, 100.04 from a float16 copy). A clamp of the result would then have
    gradient 0, and the temperature could never move again.
    """
    return logit_scale.float().exp()


def at_clamp(scale: float, largest: float) -> bool:
    """Return True where the scale is as large as the optimiser lets it become, up to rounding."""
    return scale >= largest * (1 - 1e-3)
