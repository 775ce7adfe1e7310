"""Choose which parameters decay: by the kind of module a parameter belongs to, not by its name or shape."""

from __future__ import annotations

import math
import re
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


def param_groups(
    model: DualEncoder,
    weight_decay: float,
    temperature_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
    projection_steps: int = 0,
) -> list[dict[str, Any]]:
    """Make three groups for the optimiser, named ``decay``, ``no_decay`` and ``temperature``.

    The optimiser clamps the temperature to ``maximum``, the logarithm of ``model.config.max_logit_scale``, so that
    ZeRO's master copy is clamped and not only the model's. ``lr_factor`` multiplies a group's learning rate, which is 0
    before step ``from_step``.

    layer_decay, projection_steps: settings of a warm start, see :class:`filip.train.config.WarmStartConfig`; the first
    two groups are then divided by depth.
    """
    groups: dict[tuple[str, int, bool], list[nn.Parameter]] = {
        (kind, 0, True): [] for kind in ("decay", "no_decay", "temperature")
    }
    for module, name, parameter in _owned_parameters(model):
        top = name.partition(".")[2].startswith("projection") or "." not in name
        kind = "temperature" if parameter is model.logit_scale else _kind(module, name)
        depth = 0 if top or layer_decay == 1 else _blocks_above(model, name)
        groups.setdefault((kind, depth, top or not projection_steps), []).append(parameter)
    result: list[dict[str, Any]] = []
    for (kind, depth, at_once), parameters in groups.items():
        maximum = math.log(model.config.max_logit_scale) if kind == "temperature" else None
        factor = temperature_lr_factor if kind == "temperature" else layer_decay**depth
        name = kind if at_once and not depth else f"{kind}, {depth} blocks below the top"
        group = {"name": name, "params": parameters, "weight_decay": weight_decay if kind == "decay" else 0.0}
        result.append(
            {**group, "maximum": maximum, "lr_factor": factor, "from_step": 0 if at_once else projection_steps}
        )
    return result


def _kind(module: nn.Module, name: str) -> str:
    return "decay" if decays(module, name.rpartition(".")[2]) else "no_decay"


def _blocks_above(model: DualEncoder, name: str) -> int:
    """Count the blocks of its tower between a parameter and the projection, its own included."""
    tower = name.partition(".")[0]
    blocks = len(model.image.trunk.blocks if tower == "image" else model.text.blocks)
    block = re.search(r"\bblocks\.(\d+)\.", name)
    if block:
        return blocks - int(block[1])
    return 0 if re.search(r"\bnorm\.", name) else blocks + 1


def set_lr(groups: list[dict[str, Any]], lr: float, step: int) -> None:
    """Give every group the ``lr`` of ``step``, multiplied by its own factor; 0 before its first step."""
    for group in groups:
        group["lr"] = lr * group["lr_factor"] if step >= group["from_step"] else 0.0
        group["at_step"] = step


def _owned_parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """Yield every trainable parameter once: the module that holds it, its whole name, itself."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield module, name, parameter
