"""Run the Triton kernels of the smooth maximum ``t log(mean exp(s / t))``: one exponential serves both directions.

Status: as :mod:`late_interaction.triton_backend`, whose layout this has; no GPU has run them.
With E = exp(S / t), row sums R over a caption's tokens and column sums C over an image's, both similarities are means
of logarithms, and the gradient of the similarity of a pair of tokens is E (gI / (n1 R) + gT / (n2 C)). The tile is
multiplied again in the backward, as FlashAttention does: five products in place of the maximum's three, for 16-bit
tokens of up to 256 features. R and C are kept in float32, four bytes where the maximum keeps one for each winner.
Exponentials are not shifted: |x| |y| / t may be 75 at most (unit tokens: t above 0.0134).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from late_interaction import triton_launch
from late_interaction.packing import Pair, Residuals, Tokens
from late_interaction.triton_launch import Kernels, Options
from late_interaction.triton_layout import GROUP, Layout, power_of_two
from late_interaction.triton_smooth_kernels import (
    smooth_forward_kernel,
    smooth_image_gradient_kernel,
    smooth_text_gradient_kernel,
)

RANGE = 75.0  # the largest |x| |y| / t whose exponentials, and sums of thousands of them, float32 holds


def beyond_range(tokens: Tokens) -> bool:
    """Return whether exponentials may exceed float32. It waits for a GPU to compute norms, unless they are 1."""
    if tokens.unit:
        return tokens.temperature * RANGE < 1.002  # after rounding to bfloat16
    return not _longest(tokens.image) * _longest(tokens.text) <= RANGE * tokens.temperature


def _longest(tokens: Tensor) -> float:
    """Return the largest norm of a token."""
    return float(torch.linalg.vector_norm(tokens.detach(), dim=-1, dtype=torch.float32).max())


def launch_options(dtype: torch.dtype, d: int, capability: int) -> Options:
    """Return block sizes, warps and pipeline stages of the three kernels, the same for every ``capability``."""
    wide, features = dtype == torch.float32, power_of_two(d)
    pieces = {"BLOCK_K": min(features, 32 if wide else 64), "num_warps": 8, "num_stages": 2}
    # A program multiplies the tile again for each block of features that it owns: all of them, where registers allow.
    backward = {"ROWS": 64, **pieces, "BLOCK_D": min(features, 64 if wide else 256)}
    return {"forward": {"ROWS": 128, **pieces}, "image": backward, "text": backward}


def _allocate(
    tokens: Tokens, layout: Layout, several: bool, save: bool
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    """Make the sums R [groups, P, 64] and C [tiles, images, 64]; the latter also hold the sums over rows so far."""
    rows, b = sum(tokens.patches) if save else 0, len(tokens.patches) if save or several else 0
    row_sums = tokens.image.new_empty(len(layout.first), rows, GROUP, dtype=torch.float32)
    return (row_sums, tokens.image.new_empty(len(layout.group), b, GROUP, dtype=torch.float32)), ()


KERNELS = Kernels(
    smooth_forward_kernel,
    smooth_image_gradient_kernel,
    smooth_text_gradient_kernel,
    launch_options,
    _allocate,
    lambda _: (torch.float32, torch.float32),
    multiplies_again=True,
    text_tiles=1,
)


def forward(tokens: Tokens, save_for_backward: bool = True) -> tuple[Pair, Residuals]:
    """Return s^I, s^T [images, texts] float32 and the sums R [groups, P, 64] and C [tiles, images, 64]."""
    numbers = 1 / (tokens.temperature * math.log(2)), tokens.temperature * math.log(2)
    return triton_launch.forward(KERNELS, tokens, save_for_backward, numbers)


def backward(tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool] = (True, True)) -> Pair:
    """Return float32 gradients of both inputs; one that is not needed is an empty tensor."""
    return triton_launch.backward(KERNELS, tokens, grads, residuals, needs, (1 / (tokens.temperature * math.log(2)),))
