"""Register late interaction as a PyTorch operator, so that torch.compile takes it into a graph without a break.

A compiler traces with shapes and without numbers, and the lengths of the texts are numbers. So what depends on them
(the checks, the backend, the order of the texts) happens inside the operator, where the numbers are known, and the
compiler is told the shapes of the results only. The arg-max maps are bytes to it, whose number it learns from each
call: a batch with other lengths runs the same graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from late_interaction import reference
from late_interaction.backends import choose_backend, run_backward, run_forward
from late_interaction.differentiation import refuse_second_derivative
from late_interaction.packing import Tokens, accumulation_dtype, check_tokens, longest_of, pack_images

_MAPS, _DIMENSIONS = 2, 3  # the most that a backend leaves for its backward
_MAP_DTYPES = (torch.uint8, torch.int16, torch.int32)


@torch.library.custom_op("late_interaction::late_interaction", mutates_args=())
def late_interaction(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    image_mask: Tensor | None,
    image_lengths: Tensor | None,
    backend: str,
    dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return i2t, t2i, both maps' bytes and how to read them, for tokens rounded to ``dtype``; differentiable.

    ``save``: keep the maps for the backward.
    """
    image_tokens, image_lengths = pack_images(image_tokens, image_mask, image_lengths)
    lengths = check_tokens(image_tokens, text_tokens, text_lengths, image_lengths)
    tokens = Tokens(image_tokens.to(dtype), text_tokens.to(dtype), *lengths)
    module = choose_backend(tokens.image[:0], longest_of(*lengths), backend)
    if module is reference:
        raise ValueError("the reference backend does not run inside torch.compile: PyTorch differentiates it itself")
    found, residuals = run_forward(module, tokens, save)
    return *found, *_as_bytes(residuals if save else (), image_tokens.device)


@late_interaction.register_fake
def _shapes(image_tokens: Tensor, text_tokens: Tensor, text_lengths: Tensor, *others: Any) -> tuple[Tensor, ...]:
    _, image_lengths, _, dtype, save = others
    shape = len(image_tokens if image_lengths is None else image_lengths), len(text_lengths)
    i2t = image_tokens.new_empty(shape, dtype=accumulation_dtype(dtype))
    sizes = [torch.library.get_ctx().new_dynamic_size() if save else 0 for _ in range(_MAPS)]
    maps = [image_tokens.new_empty(size, dtype=torch.uint8) for size in sizes]
    form = torch.empty(_MAPS, 2 + _DIMENSIONS, dtype=torch.int64, device="cpu")
    return i2t, torch.empty_like(i2t), *maps, form


@torch.library.custom_op("late_interaction::late_interaction_backward", mutates_args=())
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
    form: Tensor,
    backend: str,
    dtype: torch.dtype,
    saved: bool,
    image_needed: bool,
    text_needed: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the tokens, in their dtypes; one that is not needed is empty.

    Without ``saved`` the maps are made again.
    """
    packed, image_lengths = pack_images(image_tokens, image_mask, image_lengths)
    lengths = check_tokens(packed, text_tokens, text_lengths, image_lengths)
    tokens = Tokens(packed.to(dtype), text_tokens.to(dtype), *lengths)
    module = choose_backend(tokens.image[:0], longest_of(*lengths), backend)
    residuals = _from_bytes((first, second), form) if saved else run_forward(module, tokens)[1]
    found = run_backward(module, tokens, (grad_i2t, grad_t2i), residuals, (image_needed, text_needed))
    of_images, of_texts = found[0].to(image_tokens.dtype), found[1].to(text_tokens.dtype)
    if image_mask is not None and packed is not image_tokens and image_needed:
        padded = torch.zeros_like(image_tokens)
        padded[image_mask] = of_images
        of_images = padded
    return of_images, of_texts


@_backward.register_fake
def _gradient_shapes(
    grad_i2t: Tensor, grad_t2i: Tensor, image_tokens: Tensor, text_tokens: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    image_needed, text_needed = others[-2:]
    return (
        image_tokens.new_empty(image_tokens.shape if image_needed else (0,)),
        text_tokens.new_empty(text_tokens.shape if text_needed else (0,)),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.backend, ctx.dtype, ctx.saved = inputs
    ctx.save_for_backward(*tensors, *output[2:])


def _differentiate(ctx: Any, grad_i2t: Tensor, grad_t2i: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:2]
    found = _backward(grad_i2t, grad_t2i, *ctx.saved_tensors, ctx.backend, ctx.dtype, ctx.saved, *needs)
    gradients = (g if need else None for g, need in zip(found, needs, strict=True))
    return *gradients, None, None, None, None, None, None


late_interaction.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(refuse_second_derivative)


def _as_bytes(residuals: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return up to two maps as bytes, not copied, and a table of dtype, number of dimensions and shape of each."""
    maps = [torch.empty(0, dtype=torch.uint8, device=device) for _ in range(_MAPS)]
    form = torch.zeros(_MAPS, 2 + _DIMENSIONS, dtype=torch.int64)
    for place, residual in enumerate(residuals):
        maps[place] = residual.flatten().view(torch.uint8)
        numbers = [_MAP_DTYPES.index(residual.dtype), residual.dim(), *residual.shape]
        form[place, : len(numbers)] = torch.tensor(numbers)
    return maps[0], maps[1], form


def _from_bytes(maps: tuple[Tensor, ...], form: Tensor) -> tuple[Tensor, ...]:
    found = []
    for packed, (code, dimensions, *shape) in zip(maps, form.tolist(), strict=True):
        if dimensions:
            found.append(packed.view(_MAP_DTYPES[code]).view(shape[:dimensions]))
    return tuple(found)
