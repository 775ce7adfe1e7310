"""The optimisers that a run can choose, the groups of parameters that they step, and the learning rate over a run.

A new one is an entry of :data:`OPTIMIZERS`, or in another package an entry point of the group ``filip.optimizers``,
which filip.train.config asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from filip.cli.option import option
from filip.common.errors import UserError
from filip.models import DualEncoder
from filip.train.lamb import Lamb, bind_lamb, check_deepspeed_settings

Groups = list[dict[str, Any]]
Norms = dict[str, dict[str, float]]


@dataclass(frozen=True)
class OptimizerKind:
    """The properties of an optimiser that the engine needs.

    build           from parameter groups
    state_bytes     bytes of state per parameter, for the memory plan
    attach          called with DeepSpeed's engine and the optimiser, after ``initialize`` and after each load
    check_settings  raises UserError for DeepSpeed settings under which it would be wrong
    norms           {parameter: {weight, update, gradient, trust_ratio}} of the last step; empty if unknown
    skips_on_device its ``step`` does nothing where its ``found_inf``, a number on the device, is 1 (as AdamW's does for
                    torch.amp.GradScaler). Without, engine=ddp waits for the device in each step to ask
    """

    build: Callable[[Groups, OptimizerConfig], Optimizer]
    state_bytes: int
    attach: Callable[[Any, Any], None] = lambda *_: None  # any slicing by ZeRO is right for an elementwise optimiser
    check_settings: Callable[[dict[str, Any]], None] = lambda _: None
    norms: Callable[[Any], Norms] = lambda _: {}
    skips_on_device: bool = False


def _adamw(groups: Groups, o: OptimizerConfig) -> Optimizer:
    """Return AdamW in one pass over memory instead of ten: for two million weights 1.0 ms, not 10.7, on a Zen 5 core.

    Only the fused kernels look at ``found_inf``, too.
    """

    def fuse(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["fused"] = True

    adamw = AdamW(groups, o.base_lr, weight_decay=o.weight_decay)
    adamw.register_step_pre_hook(fuse)
    return adamw


@torch.no_grad()
def clamp(optimizer: Optimizer, *_: Any) -> None:
    """Clamp each group to its ``maximum``, after each step."""
    for group in optimizer.param_groups:
        for weight in group["params"] if group["maximum"] is not None else ():
            weight.clamp_(max=group["maximum"])


OPTIMIZERS: dict[str, OptimizerKind] = {
    "lamb": OptimizerKind(
        lambda groups, o: Lamb(groups, o.base_lr, weight_decay=o.weight_decay),
        8,
        attach=bind_lamb,
        check_settings=check_deepspeed_settings,
        norms=Lamb.norms,
        skips_on_device=True,
    ),
    "adamw": OptimizerKind(_adamw, state_bytes=8, skips_on_device=True),
}


@dataclass
class OptimizerConfig:
    """LAMB as in the implementation that the paper names, or AdamW; moments decay by 0.9 and 0.999."""

    name: str = option("lamb", "optimiser", choices=OPTIMIZERS)
    base_lr: float = option(6e-3, "per 512 pairs: peak LR = base_lr * sqrt(global batch / 512)", above=0)
    warmup_steps: int = option(3000, "iterations of linear warm-up", at_least=0)
    weight_decay: float = option(3e-2, "on matrices only; never on biases, norms, embeddings, temperature", at_least=0)
    temperature_lr_factor: float = option(
        1.0,
        "learning rate of the temperature over that of the rest. LAMB moves a lone number by lr * |log scale| per "
        "step whatever its gradient; the implementation that the paper names does so too, hence 1. Lower it if the "
        "scale jumps",
        above=0,
    )


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
    seen: set[int] = set()  # a parameter that two modules share is stepped once
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                kind = "decay" if decays(module, name) else "no_decay"
                groups["temperature" if parameter is model.logit_scale else kind].append(parameter)
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


def set_lr(groups: list[dict[str, Any]], lr: float) -> None:
    """Give every group the rate ``lr``, multiplied by its own factor."""
    for group in groups:
        group["lr"] = lr * group["lr_factor"]


def make_optimizer(model: DualEncoder, o: OptimizerConfig) -> Optimizer:
    """Make the optimiser that ``o`` names, over the parameter groups."""
    groups = param_groups(model, o.weight_decay, o.temperature_lr_factor)
    optimizer = OPTIMIZERS[o.name].build([group for group in groups if group["params"]], o)
    optimizer.register_step_post_hook(clamp)
    set_lr(optimizer.param_groups, o.base_lr)
    return optimizer


# --- the learning rate: square-root scaling with the batch, linear warm-up, cosine

REFERENCE_BATCH = 512


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run of ``steps`` optimiser steps."""

    peak: float
    warmup_steps: int
    steps: int

    def at(self, step: int) -> float:
        """Return step ``step``'s rate, the first being 0: linear to ``peak`` at the warm-up's last, then a cosine to 0.

        The paper leaves the end open; CLIP and its followers end at 0, in the first step that is no longer taken.
        """
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.peak * (0.5 * (1 + math.cos(math.pi * min(1.0, progress))))

    def reason(self, base_lr: float, global_batch: int) -> str:
        """Explain how the numbers came about, for the log."""
        return (
            f"peak LR {self.peak:.3g} = base {base_lr:g} x sqrt({global_batch} / {REFERENCE_BATCH}); "
            f"linear over {self.warmup_steps} iterations, then cosine to 0 at iteration {self.steps}"
        )


def make_schedule(base_lr: float, global_batch: int, warmup_steps: int, steps: int) -> Schedule:
    """Make the paper's schedule. Raise UserError if the warm-up does not fit into the run."""
    if not 0 <= warmup_steps < steps:
        raise UserError(
            f"optimizer.warmup_steps={warmup_steps} must be less than the {steps} steps of the run; "
            "lower it, or train longer (epochs, max_steps)"
        )
    return Schedule(base_lr * math.sqrt(global_batch / REFERENCE_BATCH), warmup_steps, steps)
