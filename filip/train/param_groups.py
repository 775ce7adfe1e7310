"""Choose which parameters decay: by the kind of module a parameter belongs to, not by its name or shape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from filip.models import DualEncoder

_DECAYING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


def decays(module: nn.Module, name: str) -> bool:
    """Return True for the weights of linear and convolution layers.

    Everything else does not decay: biases, LayerNorms, token embeddings, and parameters that a tower holds
    itself (position embeddings, [CLS] and register tokens, the temperature).
    """
    return isinstance(module, _DECAYING) and not name.endswith("bias")


def param_groups(model: DualEncoder, weight_decay: float, temperature_lr_factor: float = 1.0) -> list[dict[str, Any]]:
    """Make three groups for the optimiser, named ``decay``, ``no_decay`` and ``temperature``.

    The optimiser clamps the temperature to ``maximum``, the logarithm of ``model.config.max_logit_scale``, so that
    ZeRO's master copy is clamped and not only the model's. ``lr_factor`` multiplies a group's learning rate.
    """
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": [], "temperature": []}
    for module, name, parameter in _owned_parameters(model):
        groups["temperature" if parameter is model.logit_scale else _kind(module, name)].append(parameter)
    return [
        {
            "name": kind,
            "params": parameters,
            "weight_decay": weight_decay if kind == "decay" else 0.0,
            "maximum": math.log(model.config.max_logit_scale) if kind == "temperature" else None,
            "lr_factor": temperature_lr_factor if kind == "temperature" else 1.0,
        }
        for kind, parameters in groups.items()
    ]


def _kind(module: nn.Module, name: str) -> str:
    return "decay" if decays(module, name.rpartition(".")[2]) else "no_decay"


def set_lr(groups: list[dict[str, Any]], lr: float, step: int) -> None:
    """Give every group the ``lr`` of ``step``, multiplied by its own factor."""
    for group in groups:
        group["lr"] = lr * group["lr_factor"]
        group["at_step"] = step


def _owned_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield every trainable parameter once: the module that holds it, its whole name, itself."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield module, name, parameter
