"""Compute the similarity on one process: the public function, and the PyTorch operators that run both of its passes.

The operators serve eager mode and compiled graphs alike. A compiler traces with shapes and without numbers, and the
lengths of the texts are numbers. So everything that depends on them (packing, checks, the backend, the order of the
texts) happens inside the operators, where the numbers are known, and the compiler is told the shapes of the results
only. The state of a backend is a tensor of bytes to it, as long as each call makes it: a batch with other lengths runs
the same graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from late_interaction.backends import Backend, SmoothMaximum, choose_backend, run_backward, run_forward, softness
from late_interaction.differentiation import first_derivative_only, refuse_second_derivative, refuse_transforms
from late_interaction.packing import (
    Pair,
    Residuals,
    Similarity,
    Tokens,
    accumulation_dtype,
    check_are_tensors,
    longest_of,
    pack,
    text_mask,
)


def late_interaction(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    *,
    image_lengths: Tensor | None = None,
    image_mask: Tensor | None = None,
    backend: str | Backend = "auto",
    maximum: SmoothMaximum | None = None,
) -> Similarity:
    """Compute the token-wise similarity of every image with every text, differentiable (arXiv 2111.07783, eq. 3 to 5).

    With f_i the n1 tokens of image i (n1 may differ) and g_j the n2_j tokens of text j,

        i2t[i, j] = mean over k of max over r of f_i[k] . g_j[r]
        t2i[i, j] = mean over k of max over r of f_i[r] . g_j[k]

    Arguments
        image_tokens  [images, n1, d], floating point; of unit length in FILIP, which nothing here needs
        text_tokens   [T, d]: the valid tokens of all texts, one text after the other, no padding
        text_lengths  [texts] integers >= 1 with sum T
                      The padded form of both: text_tokens [texts, n2, d] with lengths, or with a boolean mask
                      [texts, n2], true for the tokens that exist. No value and no gradient depends on the others
        image_lengths [images] integers >= 1: then image_tokens are [P, d], the tokens of all images, one image after
                      the other, with P the sum. None: all images have n1
        image_mask    the padded form of it: [images, n1] boolean, true for the tokens that exist; the others are
                      ignored and cost nothing. None: all do
        backend       "auto" or a name of late_interaction.backends.BACKENDS; the environment variable
                      LATE_INTERACTION_BACKEND overrides "auto"
        maximum       ``SmoothMaximum(0.05)`` for a smooth one of that temperature; None: the maximum itself

    Returns ``Similarity(i2t, t2i)``, each [images, texts], float32 (float64 for float64 tokens). 16-bit
    tokens are multiplied exactly and summed in float32, under autocast too.
    Gradients arrive in the dtype of the tokens; they cannot be differentiated again. When several tokens share a
    maximum, the one with the lowest index takes the whole gradient.
    Raises ValueError for an empty batch, mismatching shapes, or a backend that is unknown or cannot run, and
    NotImplementedError inside torch.func transforms and torch.jit.trace.
    """
    return interact(
        image_tokens, text_tokens, text_lengths, image_mask, image_lengths, backend=backend, maximum=maximum
    )


def interact(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    image_mask: Tensor | None = None,
    image_lengths: Tensor | None = None,
    *,
    backend: str | Backend = "auto",
    maximum: SmoothMaximum | None = None,
    dtype: torch.dtype | None = None,
    recompute: bool = False,
) -> Similarity:
    """Compute :func:`late_interaction` of tokens rounded to ``dtype``; ``recompute`` saves no maps and scores again.

    The gradients are not rounded with the tokens: they arrive as computed, in the dtype of the tokens passed in.
    """
    refuse_transforms("late_interaction", image_tokens, text_tokens)
    check_are_tensors(text_lengths, image_lengths)
    dtype = dtype or torch.promote_types(image_tokens.dtype, text_tokens.dtype)
    temperature, unit = softness(maximum)
    # A GPU is waited for once, not in each pass.
    text_lengths, image_lengths = text_lengths.cpu(), None if image_lengths is None else image_lengths.cpu()
    needed = wants_gradient(image_tokens, text_tokens)
    tensors = image_tokens, text_tokens, text_lengths, image_mask, image_lengths
    if isinstance(backend, str):
        return Similarity(*score(*tensors, backend, temperature, dtype, needed and not recompute)[:2])
    tokens = pack(*tensors)
    plan = Plan(backend, dtype, recompute or not needed, tokens.lengths, tokens.image_lengths, temperature, unit)
    return Similarity(*_OfPython.apply(tokens.image, tokens.text, plan))


def wants_gradient(*tensors: Tensor) -> bool:
    """Return whether autograd would record an operation on these."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class Plan(NamedTuple):
    """The arguments of an autograd Function of late interaction, apart from the tokens of both sides."""

    module: Backend
    dtype: torch.dtype  # the dtype that tokens are rounded to
    recompute: bool
    lengths: list[int]  # those of the texts that the images meet
    image_lengths: list[int] | None
    temperature: float = 0.0
    unit: bool = False

    def tokens(self, image_tokens: Tensor, text_tokens: Tensor) -> Tokens:
        """Return the tokens as they are multiplied."""
        sides = image_tokens.to(self.dtype), text_tokens.to(self.dtype)
        return Tokens(*sides, self.lengths, self.image_lengths, self.temperature, self.unit)

    def score(self, tokens: Tokens) -> tuple[Pair, Residuals]:
        """Return both similarities, and the backend's state for the backward."""
        scores, residuals = run_forward(self.module, tokens, save_for_backward=not self.recompute)
        return scores, () if self.recompute else residuals

    def gradients(self, tokens: Tokens, grads: Pair, kept: Residuals, needs: tuple[bool, bool]) -> Pair:
        """Return the gradients of both sides, in the accumulation dtype."""
        residuals = run_forward(self.module, tokens)[1] if self.recompute else kept
        return run_backward(self.module, tokens, grads, residuals, needs)


class _OfPython(torch.autograd.Function):
    """The similarity of a backend that is a Python object, which no operator takes."""

    # The tokens are saved as they came: a second derivative with respect to them is then seen, and refused.
    @staticmethod
    def forward(ctx: Any, image_tokens: Tensor, text_tokens: Tensor, plan: Plan) -> Pair:
        scores, residuals = plan.score(plan.tokens(image_tokens, text_tokens))
        ctx.save_for_backward(image_tokens, text_tokens, *residuals)
        ctx.plan = plan
        return scores

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, text, *residuals = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        gradients = ctx.plan.gradients(ctx.plan.tokens(image, text), grads, tuple(residuals), needs)
        return *as_input_gradients(gradients, needs, (image, text)), None


def as_input_gradients(
    gradients: Pair, needs: tuple[bool, bool], tokens: tuple[Tensor, Tensor]
) -> tuple[Tensor | None, ...]:
    """Return an autograd Function's gradients for ``tokens``: each in its dtype, None where none is needed."""
    return tuple(g.to(t.dtype) if need else None for g, need, t in zip(gradients, needs, tokens, strict=True))


def _forward(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    image_mask: Tensor | None,
    image_lengths: Tensor | None,
    backend: str,
    temperature: float,
    dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return i2t, t2i and, with ``save``, the bytes that the backend keeps, for tokens rounded to ``dtype``.

    ``temperature``: of the smooth maximum; 0: the maximum.
    """
    tokens = pack(image_tokens, text_tokens, text_lengths, image_mask, image_lengths, temperature).rounded(dtype)
    scores, residuals = run_forward(_module(tokens, backend), tokens, save)
    if not (save and residuals):
        residuals = image_tokens.new_empty(0), image_tokens.new_empty(0)
    first, second = (residual.flatten().view(torch.uint8) for residual in residuals)
    return *scores, first, second


def _shapes(image_tokens: Tensor, text_tokens: Tensor, text_lengths: Tensor, *others: Any) -> tuple[Tensor, ...]:
    _, image_lengths, _, _, dtype, save = others
    shape = len(image_tokens if image_lengths is None else image_lengths), len(text_lengths)
    i2t = image_tokens.new_empty(shape, dtype=accumulation_dtype(dtype))
    sizes = [torch.library.get_ctx().new_dynamic_size() if save else 0 for _ in range(2)]
    return i2t, torch.empty_like(i2t), *(image_tokens.new_empty(size, dtype=torch.uint8) for size in sizes)


def _backward(
    grad_i2t: Tensor,
    grad_t2i: Tensor,
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    image_mask: Tensor | None,
    image_lengths: Tensor | None,
    first: Tensor,
    second: Tensor,
    backend: str,
    temperature: float,
    dtype: torch.dtype,
    saved: bool,
    image_needed: bool,
    text_needed: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the tokens, in their dtypes; one that is not needed is empty.

    Without ``saved`` the backend's state is made again.
    """
    tokens = pack(image_tokens, text_tokens, text_lengths, image_mask, image_lengths, temperature).rounded(dtype)
    module = _module(tokens, backend)
    residuals = tuple(item for item in (first, second) if item.numel()) if saved else run_forward(module, tokens)[1]
    gradients = run_backward(module, tokens, (grad_i2t, grad_t2i), residuals, (image_needed, text_needed))
    masks = image_mask, text_mask(text_tokens, text_lengths) if text_tokens.dim() == 3 else None
    sides = zip(gradients, (image_tokens, text_tokens), masks, (image_needed, text_needed), strict=True)
    of_images, of_texts = (_padded(*side) for side in sides)
    return of_images, of_texts


def _gradient_shapes(_: Tensor, __: Tensor, image_tokens: Tensor, text_tokens: Tensor, *others: Any) -> tuple[Any, ...]:
    sides = zip((image_tokens, text_tokens), others[-2:], strict=True)
    return tuple(tokens.new_empty(tokens.shape if needed else (0,)) for tokens, needed in sides)


def _module(tokens: Tokens, backend: str) -> Backend:
    return choose_backend(tokens.image[:0], longest_of(tokens.lengths, tokens.image_lengths), backend)


def _padded(gradient: Tensor, tokens: Tensor, mask: Tensor | None, needed: bool) -> Tensor:
    """Return the ``gradient`` of packed tokens in the shape and dtype of the padded ones; empty if it is not needed."""
    if not needed:
        return tokens.new_empty(0)
    if mask is None or gradient.shape == tokens.shape:
        return gradient.to(tokens.dtype)
    padded = tokens.new_zeros(tokens.shape)
    padded[mask] = gradient.to(tokens.dtype)
    return padded


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5], *output[2:])
    ctx.settings = inputs[5:]


def _differentiate(ctx: Any, grad_i2t: Tensor, grad_t2i: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:2]
    results = gradients(grad_i2t, grad_t2i, *ctx.saved_tensors, *ctx.settings, *needs)
    return *(g if need else None for g, need in zip(results, needs, strict=True)), *[None] * 7


def _register(name: str, function: Any, fake: Any, backward: Any, save: Any = None) -> Any:
    qualified = f"late_interaction::{name}"  # (torch.library.custom_op would import the compiler at its first call)
    torch.library.define(qualified, torch.library.infer_schema(function, mutates_args=()))
    torch.library.impl(qualified, "default", function)
    torch.library.register_fake(qualified, fake)
    torch.library.register_autograd(qualified, backward, setup_context=save)
    return getattr(torch.ops.late_interaction, name).default


score = _register("forward", _forward, _shapes, _differentiate, _save)
gradients = _register("backward", _backward, _gradient_shapes, refuse_second_derivative)
