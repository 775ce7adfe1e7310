"""The public functions on one process, and the choice of a backend."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from filip.interaction import reference, tiled
from filip.interaction.packed import Similarity, check_tokens, pack_tokens

ENVIRONMENT_VARIABLE = "FILIP_INTERACTION_BACKEND"
BACKENDS = ("auto", "reference", "tiled", "native", "triton")
_notices: set[str] = set()


def late_interaction(
    image_tokens: Tensor, text_tokens: Tensor, text_lengths: Tensor, *, backend: str = "auto"
) -> Similarity:
    """Token-wise similarity of every image with every text (FILIP, equations 3 to 5), differentiable.

    With f_i the n1 tokens of image i and g_j the n2_j tokens of text j,

        i2t[i, j] = mean over k of max over r of f_i[k] . g_j[r]
        t2i[i, j] = mean over k of max over r of f_i[r] . g_j[k]

    Arguments
        image_tokens  [images, n1, d], floating point; FILIP's are of unit length, nothing here needs that
        text_tokens   [T, d]: the valid tokens of all texts, one text after the other, no padding
        text_lengths  [texts] integers >= 1 with sum T
        backend       "auto", "reference", "tiled", "native" or "triton"; the environment variable
                      FILIP_INTERACTION_BACKEND overrides "auto"

    Returns ``Similarity(i2t, t2i)``, each [images, texts], float32 (float64 for float64 tokens); a 16-bit
    token is multiplied exactly and summed in float32. Gradients arrive in the dtype of the tokens. When
    several tokens share a maximum, the one with the lowest index takes the whole gradient.
    Raises ValueError for an empty batch, mismatching shapes or an unknown backend.
    """
    lengths = check_tokens(image_tokens, text_tokens, text_lengths)
    common = torch.promote_types(image_tokens.dtype, text_tokens.dtype)
    image_tokens, text_tokens = image_tokens.to(common), text_tokens.to(common)
    module = choose_backend(image_tokens, text_tokens, backend)
    return Similarity(*_LateInteraction.apply(image_tokens, text_tokens, lengths, module))


def late_interaction_padded(
    image_tokens: Tensor, text_tokens: Tensor, text_lengths: Tensor, *, backend: str = "auto"
) -> Similarity:
    """:func:`late_interaction` for padded text: ``text_tokens`` [texts, n2, d], ``text_lengths`` [texts].

    What lies in the padding takes part in nothing: neither a value nor a gradient depends on it.
    """
    return late_interaction(
        image_tokens, pack_tokens(text_tokens, text_lengths), text_lengths, backend=backend
    )


def choose_backend(image_tokens: Tensor, text_tokens: Tensor, backend: str = "auto") -> ModuleType:
    """The module that computes this problem; each has ``forward`` and ``backward`` (see reference.py)."""
    wanted = backend
    if backend == "auto":
        wanted = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if wanted not in BACKENDS:
        source = f"{ENVIRONMENT_VARIABLE}=" if backend == "auto" else "backend="
        raise ValueError(f"{source}{wanted!r} is not a backend; choose one of {', '.join(BACKENDS)}")
    if wanted == "reference":
        return reference
    return tiled


def notice_once(message: str) -> None:
    if message not in _notices:
        _notices.add(message)
        print(f"filip.interaction: {message}", file=sys.stderr, flush=True)


class _LateInteraction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image_tokens: Tensor, text_tokens: Tensor, lengths: list[int], module: ModuleType
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(image_tokens.device.type, enabled=False):
            i2t, t2i, kept = module.forward(image_tokens, text_tokens, lengths)
        ctx.save_for_backward(image_tokens, text_tokens)
        ctx.lengths, ctx.module, ctx.kept = lengths, module, kept
        return i2t, t2i

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        image_tokens, text_tokens = ctx.saved_tensors
        grad_images, grad_texts = ctx.module.backward(
            *grads, image_tokens, text_tokens, ctx.lengths, ctx.kept
        )
        return grad_images.to(image_tokens.dtype), grad_texts.to(text_tokens.dtype), None, None
