"""Define the public functions on one process."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from late_interaction import operator
from late_interaction.backends import Backend, choose_backend, run_backward, run_forward
from late_interaction.differentiation import first_derivative_only, refuse_transforms
from late_interaction.packing import (
    Pair,
    Residuals,
    Similarity,
    Tokens,
    check_each_has_a_token,
    check_tokens,
    longest_of,
    pack_images,
    pack_masked,
    pack_tokens,
)


def late_interaction(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    *,
    image_lengths: Tensor | None = None,
    image_mask: Tensor | None = None,
    backend: str | Backend = "auto",
) -> Similarity:
    """Compute the token-wise similarity of every image with every text, differentiable (arXiv 2111.07783, eq. 3 to 5).

    With f_i the n1 tokens of image i (n1 may differ) and g_j the n2_j tokens of text j,

        i2t[i, j] = mean over k of max over r of f_i[k] . g_j[r]
        t2i[i, j] = mean over k of max over r of f_i[r] . g_j[k]

    Arguments
        image_tokens  [images, n1, d], floating point; of unit length in FILIP, which nothing here needs
        text_tokens   [T, d]: the valid tokens of all texts, one text after the other, no padding
        text_lengths  [texts] integers >= 1 with sum T
        image_lengths [images] integers >= 1: then image_tokens are [P, d], the tokens of all images, one image after
                      the other, with P the sum. None: all images have n1
        image_mask    the padded form of it: [images, n1] boolean, true for the tokens that exist; the others are
                      ignored and cost nothing. None: all do
        backend       "auto" or a name of late_interaction.backends.BACKENDS; the environment variable
                      LATE_INTERACTION_BACKEND overrides "auto". Or a similarity in place of the maximum, such as
                      ``SmoothMaximum(0.05)``

    Returns ``Similarity(i2t, t2i)``, each [images, texts], float32 (float64 for float64 tokens). 16-bit
    tokens are multiplied exactly and summed in float32, under autocast too.
    Gradients arrive in the dtype of the tokens; they cannot be differentiated again. When several tokens share a
    maximum, the one with the lowest index takes the whole gradient.
    Raises ValueError for an empty batch, mismatching shapes, or a backend that is unknown or cannot run, and
    NotImplementedError inside torch.func transforms.
    """
    return interact(image_tokens, text_tokens, text_lengths, image_mask, image_lengths, backend=backend)


def late_interaction_padded(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    *,
    image_lengths: Tensor | None = None,
    image_mask: Tensor | None = None,
    backend: str | Backend = "auto",
) -> Similarity:
    """Compute :func:`late_interaction` for padded text: ``text_tokens`` [texts, n2, d], ``text_lengths`` [texts].

    In place of the lengths it also takes a boolean mask [texts, n2], true for the tokens that exist, wherever they are.
    The padding is ignored: no value and no gradient depends on it.
    """
    if text_lengths.dtype == torch.bool:
        packed, text_lengths = pack_masked(text_tokens, text_lengths)
    else:
        packed = pack_tokens(text_tokens, text_lengths)
    check_each_has_a_token("text", text_lengths.tolist())  # which are no cumulative lengths here
    images: dict[str, Tensor | None] = {"image_lengths": image_lengths, "image_mask": image_mask}
    return late_interaction(image_tokens, packed, text_lengths, **images, backend=backend)


def interact(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    image_mask: Tensor | None = None,
    image_lengths: Tensor | None = None,
    *,
    backend: str | Backend = "auto",
    dtype: torch.dtype | None = None,
    recompute: bool = False,
) -> Similarity:
    """Compute :func:`late_interaction` of tokens rounded to ``dtype``; ``recompute`` saves no maps and scores again.

    The gradients are not rounded with the tokens: they arrive as computed, in the dtype of the tokens passed in.
    """
    dtype = dtype or torch.promote_types(image_tokens.dtype, text_tokens.dtype)
    if torch.compiler.is_compiling() and isinstance(backend, str):
        save = wants_gradient(image_tokens, text_tokens) and not recompute
        tensors = image_tokens, text_tokens, text_lengths, image_mask, image_lengths
        return Similarity(*operator.late_interaction(*tensors, backend, dtype, save)[:2])
    refuse_transforms("late_interaction")
    image_tokens, image_lengths = pack_images(image_tokens, image_mask, image_lengths)
    lengths = check_tokens(image_tokens, text_tokens, text_lengths, image_lengths)
    module = choose_backend(image_tokens[:0].to(dtype), longest_of(*lengths), backend)
    if not wants_gradient(image_tokens, text_tokens):
        tokens = Tokens(image_tokens.to(dtype), text_tokens.to(dtype), *lengths)
        return Similarity(*run_forward(module, tokens, save_for_backward=False)[0])
    plan = Plan(module, dtype, recompute, *lengths)
    return Similarity(*_LateInteraction.apply(image_tokens, text_tokens, plan))


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

    def tokens(self, image_tokens: Tensor, text_tokens: Tensor) -> Tokens:
        """Return the tokens as they are multiplied."""
        sides = image_tokens.to(self.dtype), text_tokens.to(self.dtype)
        return Tokens(*sides, self.lengths, self.image_lengths)

    def score(self, tokens: Tokens) -> tuple[Pair, Residuals]:
        """Return both similarities, and what the backward is to keep of them."""
        found, residuals = run_forward(self.module, tokens, save_for_backward=not self.recompute)
        return found, () if self.recompute else residuals

    def gradients(self, tokens: Tokens, grads: Pair, kept: Residuals, needs: tuple[bool, bool]) -> Pair:
        """Return the gradients of both sides, in the accumulation dtype."""
        residuals = run_forward(self.module, tokens)[1] if self.recompute else kept
        return run_backward(self.module, tokens, grads, residuals, needs)


class _LateInteraction(torch.autograd.Function):
    # The tokens are saved as they came: a second derivative with respect to them is then seen, and refused.
    @staticmethod
    def forward(ctx: Any, image_tokens: Tensor, text_tokens: Tensor, plan: Plan) -> Pair:
        found, residuals = plan.score(plan.tokens(image_tokens, text_tokens))
        ctx.save_for_backward(image_tokens, text_tokens, *residuals)
        ctx.plan = plan
        return found

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, text, *kept = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        found = ctx.plan.gradients(ctx.plan.tokens(image, text), grads, tuple(kept), needs)
        return *as_input_gradients(found, needs, (image, text)), None


def as_input_gradients(
    found: Pair, needs: tuple[bool, bool], tokens: tuple[Tensor, Tensor]
) -> tuple[Tensor | None, ...]:
    """Return what an autograd Function returns for ``tokens``: each in its dtype, None where no gradient is needed."""
    return tuple(g.to(t.dtype) if need else None for g, need, t in zip(found, needs, tokens, strict=True))
