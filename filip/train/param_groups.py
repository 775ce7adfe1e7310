"""Which parameters decay: decided by the kind of module a parameter belongs to, not by its name or shape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from filip.models import DualEncoder

_DECAYING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


def decays(module: nn.Module, name: str) -> bool:
    """True for the weights of linear and convolution layers.

    Everything else does not decay: biases, LayerNorms, token embeddings, and parameters that a tower holds
    itself (position embeddings, [CLS] and register tokens, the temperature).
    """
    return isinstance(module, _DECAYING) and not name.endswith("bias")


def param_groups(
    model: DualEncoder, weight_decay: float, temperature_lr_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Three groups for the optimiser, named: ``decay``, ``no_decay`` and ``temperature``.

    The optimiser clamps the temperature to ``maximum``, the logarithm of ``model.config.max_logit_scale``, so that
    ZeRO's master copy is clamped and not only the model's. ``lr_factor`` multiplies a group's learning rate.
    """
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": [], "temperature": []}
    for module, name, parameter in _owned_parameters(model):
        if parameter is model.logit_scale:
            groups["temperature"].append(parameter)
        else:
            groups["decay" if decays(module, name) else "no_decay"].append(parameter)
    result: list[dict[str, Any]] = []
    for name, parameters in groups.items():
        maximum = math.log(model.config.max_logit_scale) if name == "temperature" else None
        decay = weight_decay if name == "decay" else 0.0
        factor = temperature_lr_factor if name == "temperature" else 1.0
        group = {"name": name, "params": parameters, "weight_decay": decay}
        result.append({**group, "maximum": maximum, "lr_factor": factor})
    return result


def set_lr(groups: list[dict[str, Any]], lr: float) -> None:
    """Give every group ``lr``, multiplied by its own factor."""
    for group in groups:
        group["lr"] = lr * group["lr_factor"]


def _owned_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Every trainable parameter once, with the module that holds it."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield module, name, parameter
