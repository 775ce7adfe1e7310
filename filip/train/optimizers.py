"""The optimisers that a run can choose.

A new one is an entry of :data:`OPTIMIZERS`, or in another package an entry point of the group ``filip.optimizers``,
which filip.train.config asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch.optim import Optimizer

from filip.train.lamb import ClampedAdamW, Lamb
from filip.train.zero_layout import bind_lamb, check_deepspeed_settings

Groups = list[dict[str, Any]]
Norms = dict[str, dict[str, float]]


class OptimizerSettings(Protocol):
    """The fields of the training configuration's ``optimizer`` that are read here."""

    base_lr: float
    eps: float | None  # None: the kind's own
    weight_decay: float


def _nothing(*_: Any) -> None:
    """Do nothing: elementwise optimisers need no preparation, since any slicing by ZeRO is right for them."""


def _no_norms(_: Any) -> Norms:
    return {}


@dataclass(frozen=True)
class OptimizerKind:
    """The properties of an optimiser that the engine needs.

    build           from parameter groups; it must clamp each group's weights to ``maximum`` (None: no clamp)
    state_bytes     bytes of state per parameter, for the memory plan
    eps             added outside the root, unless the configuration gives another
    attach          called with DeepSpeed's engine and the optimiser, after ``initialize`` and after each load
    check_settings  raises UserError for DeepSpeed settings under which it would be wrong
    norms           {parameter: {weight, update, gradient, trust_ratio}} of the last step; empty if unknown
    """

    build: Callable[[Groups, OptimizerSettings], Optimizer]
    state_bytes: int
    eps: float = 1e-8
    attach: Callable[[Any, Any], None] = _nothing
    check_settings: Callable[[dict[str, Any]], None] = _nothing
    norms: Callable[[Any], Norms] = _no_norms


def _eps(o: OptimizerSettings, name: str) -> float:
    return OPTIMIZERS[name].eps if o.eps is None else o.eps


def _lamb(groups: Groups, o: OptimizerSettings) -> Optimizer:
    return Lamb(groups, o.base_lr, eps=_eps(o, "lamb"), weight_decay=o.weight_decay)


def _adamw(groups: Groups, o: OptimizerSettings) -> Optimizer:
    return ClampedAdamW(groups, o.base_lr, eps=_eps(o, "adamw"), weight_decay=o.weight_decay)


OPTIMIZERS: dict[str, OptimizerKind] = {
    "lamb": OptimizerKind(
        _lamb,
        state_bytes=8,
        eps=1e-4,
        attach=bind_lamb,
        check_settings=check_deepspeed_settings,
        norms=Lamb.norms,
    ),
    "adamw": OptimizerKind(_adamw, state_bytes=8, eps=1e-8),
}
