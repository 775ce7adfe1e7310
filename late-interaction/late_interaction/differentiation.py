"""Raise clear errors for second derivatives and torch.func."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Gradients = tuple[Tensor | None, ...]


def first_derivative_only(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Make an autograd Function's ``backward`` raise, naming the reason, when its result is differentiated.

    PyTorch's ``once_differentiable`` does so only if the upstream gradient needs a gradient itself; otherwise a
    gradient penalty is dropped silently.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *grads: Tensor) -> Gradients:
        with torch.no_grad():
            gradients = backward(ctx, *grads)
        if not torch.is_grad_enabled():  # enabled by create_graph=True
            return gradients
        # Anchored on the tokens, so that a derivative with respect to them is refused however it is asked for.
        anchors = [tensor for tensor in (*ctx.saved_tensors, *grads) if tensor.requires_grad]
        anchors = anchors or [torch.zeros((), requires_grad=True)]
        return tuple(g if g is None else _SecondDerivative.apply(g, *anchors) for g in gradients)

    return once


class _SecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *anchors: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        return refuse_second_derivative(ctx, *grads)


def refuse_second_derivative(ctx: Any, *grads: Tensor) -> Gradients:
    """Raise NotImplementedError, as the backward of a backward."""
    raise NotImplementedError(
        "late interaction has no second derivative; for a gradient penalty write the similarity in plain PyTorch "
        "(late_interaction.reference.late_interaction)"
    )


def refuse_transforms(name: str, *tokens: Tensor) -> None:
    """Raise NotImplementedError inside torch.func.grad, vmap, jvp and similar transforms, and in torch.jit.trace.

    tokens: those that may carry a tangent of forward-mode differentiation, which would be dropped in silence.
    """
    if torch.compiler.is_compiling():
        return
    if torch.jit.is_tracing():
        raise NotImplementedError(f"{name} cannot be traced by torch.jit, which records no operator; use torch.export")
    if any(isinstance(t, Tensor) and forward_ad.unpack_dual(t).tangent is not None for t in tokens):
        raise NotImplementedError(
            f"{name} has no forward-mode derivative; use backward(), or reference.late_interaction"
        )
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    if active is not None and active():
        raise NotImplementedError(
            f"{name} does not run inside torch.func transforms (grad, vmap, jvp, ...): its gradient comes from "
            "compiled kernels; use torch.autograd.grad or backward(), or late_interaction.reference.late_interaction"
        )
