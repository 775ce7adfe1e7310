"""The temperature: similarities are multiplied by a scale, its inverse, of which the logarithm is learned.

``model.init_temperature`` is where it starts, ``model.max_logit_scale`` how large the scale may become, and
``optimizer.temperature_lr_factor`` how fast it moves (filip/train/optimizers.py has its parameter group).
"""

from __future__ import annotations


def at_clamp(scale: float, largest: float) -> bool:
    """Return True where the scale is as large as the optimiser lets it become, up to rounding."""
    return scale >= largest * (1 - 1e-3)
