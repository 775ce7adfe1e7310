"""Run the Triton kernels of the smooth maximum ``t log(mean exp(s / t))``: one exponential serves both directions.

Status: as :mod:`filip.interaction.triton_backend`, whose layout this has; no GPU has run them.

With E = exp(S / t), row sums R over a caption's tokens and column sums C over an image's, both similarities are means
of logarithms, and the gradient of the similarity of a pair of tokens is E (gI / (n1 R) + gT / (n2 C)). The tile is
multiplied again in the backward, as FlashAttention does: five products in place of the maximum's three, for 16-bit
tokens of up to 256 features (float32 ones take one more on each side for every further 64 features). R and C are kept
in float32, four bytes where the maximum keeps one for each winner. 16-bit tokens meet weights in 16 bits, scaled as the
maximum's. Exponentials are not shifted: |x| |y| / t may be 75 at most (unit tokens: t above 0.0134).
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from filip.interaction.packing import Pair, Residuals, Tokens
from filip.interaction.triton_backend import _splits, _widen
from filip.interaction.triton_backend import unavailable_reason as reason_of_the_maximum
from filip.interaction.triton_layout import GROUP, active_tiles, lay_out, listed, power_of_two, scaled_weights
from filip.interaction.triton_smooth_kernels import (
    smooth_forward_kernel,
    smooth_image_gradient_kernel,
    smooth_text_gradient_kernel,
)

RANGE = 75.0  # the largest |x| |y| / t whose exponentials, and sums of thousands of them, float32 holds


def unavailable_reason(tokens: Tokens, temperature: float) -> str:
    """Return why these kernels cannot compute this problem; "" if they can. It waits for a GPU to compute norms."""
    if reason := reason_of_the_maximum(tokens.image, max(tokens.lengths)):
        return reason
    longest = _longest(tokens.image) * _longest(tokens.text)
    if longest <= RANGE * temperature:
        return ""
    return f"tokens of length {longest:.3g} over a temperature of {temperature:g} exceed float32"


def _longest(tokens: Tensor) -> float:
    """Return the largest norm of a token."""
    return float(torch.linalg.vector_norm(tokens.detach(), dim=-1, dtype=torch.float32).max())


def launch_options(dtype: torch.dtype, n1: int, d: int) -> dict[str, dict[str, int]]:
    """Return block sizes, warps and pipeline stages of the three kernels."""
    wide, features = dtype == torch.float32, power_of_two(d)
    pieces = {"BLOCK_K": min(features, 32 if wide else 64), "num_warps": 8, "num_stages": 2}
    # A program multiplies the tile again for each block of features that it owns: all of them, where registers allow.
    backward = {**_rows(n1, 64), **pieces, "BLOCK_D": min(features, 64 if wide else 256)}
    return {"forward": {**_rows(n1, 128), **pieces}, "image": backward, "text": backward}


def _rows(n1: int, most: int) -> dict[str, int]:
    rows = min(power_of_two(n1), most)
    return {"ROWS": rows, "IMAGES": most // rows}


def forward(tokens: Tokens, temperature: float, save_for_backward: bool = True) -> tuple[Pair, Residuals]:
    """Return s^I, s^T [images, texts] float32 and the sums R [images, n1, slots] and C [images, entries]."""
    images, texts, lengths = tokens.image.contiguous(), tokens.text.contiguous(), tokens.lengths
    b, n1, d = images.shape
    layout = lay_out(lengths, images.device)
    slots, entries, groups = len(layout.text), len(layout.row), len(layout.first)
    options = launch_options(images.dtype, n1, d)["forward"]
    rows, blocks = options["ROWS"], triton.cdiv(b, options["IMAGES"])
    i2t = images.new_empty(b, len(lengths), dtype=torch.float32)
    t2i = torch.empty_like(i2t)
    row_sums = images.new_empty(b if save_for_backward else 0, n1, slots, dtype=torch.float32)
    # Also the sums over the rows so far, for images that take several launches.
    entry_sums = images.new_empty(b if save_for_backward or n1 > rows else 0, entries, dtype=torch.float32)
    with torch.cuda.device_of(images):  # Triton launches on the current device
        for start in range(0, n1, rows):
            smooth_forward_kernel[(blocks, groups)](
                images, texts, *layout[:4], layout.row, i2t, t2i, row_sums, entry_sums,
                n1, d, start, b, len(lengths), groups, entries // GROUP,
                1 / (temperature * math.log(2)), temperature * math.log(2),
                FIRST=start == 0, LAST=start + rows >= n1, SAVE=save_for_backward, GROUP=GROUP,
                WIDEN=_widen(images), **options,
            )  # fmt: skip
    return (i2t, t2i), (row_sums, entry_sums) if save_for_backward else ()


def backward(
    tokens: Tokens,
    temperature: float,
    grads: Pair,
    residuals: Residuals,
    needs: tuple[bool, bool] = (True, True),
) -> Pair:
    """Return float32 gradients of both inputs; one that is not needed is an empty tensor."""
    images, texts, lengths = tokens.image.contiguous(), tokens.text.contiguous(), tokens.lengths
    b, n1, d = images.shape
    layout = lay_out(lengths, images.device)
    options = launch_options(images.dtype, n1, d)
    per_text = torch.tensor(lengths, device=images.device)
    upstream = grads[0].float() / n1, grads[1].float() / per_text
    shared = (*residuals, n1, d, b, len(layout.first), len(layout.row) // GROUP)
    to_exponent = 1 / (temperature * math.log(2))
    grad_images = images.new_empty(0, n1, d, dtype=torch.float32)
    grad_texts = texts.new_empty(0, d, dtype=torch.float32)
    with torch.cuda.device_of(images):
        if needs[0]:
            weights, scale = scaled_weights(upstream, 1, layout, images.dtype)
            option = options["image"]
            active = active_tiles(weights, option["IMAGES"])  # [blocks of images, groups]
            programs = len(active) * triton.cdiv(n1, option["ROWS"])
            partial = images.new_empty(_splits(programs, active.shape[1]), b, n1, d, dtype=torch.float32)
            smooth_image_gradient_kernel[(programs, len(partial), triton.cdiv(d, option["BLOCK_D"]))](
                images, texts, partial, layout.length, layout.first, layout.positions, layout.row, *weights,
                *listed(active), *shared, len(partial), to_exponent, GROUP=GROUP, WIDEN=_widen(images), **option,
            )  # fmt: skip
            grad_images = partial.sum(dim=0) * scale[:, :, None]
        if needs[1]:
            weights, scale = scaled_weights(upstream, 0, layout, images.dtype)
            option = options["text"]
            of_groups = active_tiles(weights, option["IMAGES"]).T  # [groups, blocks of images]
            active = of_groups[layout.group.long()]  # a program has a tile
            partial = _partial_texts(active, texts)
            smooth_text_gradient_kernel[(len(active), len(partial), triton.cdiv(d, option["BLOCK_D"]))](
                images, texts, partial, layout.length, layout.group, layout.position, layout.row, *weights,
                *listed(active), *shared, len(texts), len(partial), to_exponent, GROUP=GROUP, WIDEN=_widen(images),
                **option,
            )  # fmt: skip
            of_rows = scale.flatten().repeat_interleave(per_text, output_size=len(texts))
            grad_texts = partial.sum(dim=0) * of_rows[:, None]
    return grad_images, grad_texts


def _partial_texts(active: Tensor, texts: Tensor) -> Tensor:
    return texts.new_empty(_splits(len(active), active.shape[1]), *texts.shape, dtype=torch.float32)
