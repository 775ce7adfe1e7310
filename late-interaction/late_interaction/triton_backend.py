"""Run Triton kernels on GPUs: one product tile feeds both maxima; the backward multiplies the winners' weights.

Status: written for fp16, bf16 and float32 on NVIDIA compute capability 8.0 and newer, and 16 bits on AMD's MI300. Tests
compare every value in Triton's interpreter on a CPU (``TRITON_INTERPRET=1``) and compile the kernels for 8.0, 9.0, 10.0
and gfx942 (tests/interaction/test_triton.py); no GPU has run them. Triton dropped Volta's tensor cores after 3.1, so on
V100 "auto" takes the tiled backend. float64 is not supported.

Layout. Captions are put in order of length and cut into groups of 64. A tile is *one position* of the 64 captions of a
group: 64 rows of text tokens, captions that end before the group's longest repeating their last token, which
cannot change a maximum. So captions of any length are scored by one kernel with almost no padding, and the maximum over
the tokens of a caption is a running maximum over tiles, element by element, that never crosses a thread. The texts are
copied in the order of the tiles, so that a tile is read from one address. An image occupies 16, 32, 64 or 128 rows of a
block, or is cut into several of these: 80 tokens take 64 and 16 rows. A launch takes the blocks of one size of all
images; those of the forward hand the maximum over an image's rows so far on.

Backward. From the arg-max maps a tile of the similarity's gradient is rebuilt in registers (two one-hot matrices times
their weights) and multiplied with the tokens of the other side. Adding the winners' rows instead, as on the CPU, is
no faster (docs/interaction_how.md). Tiles of negligible weights are left out. No atomics: the same bits each time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from late_interaction import tiled, triton_launch, triton_smooth
from late_interaction.lengths import index_dtype
from late_interaction.packing import Pair, Residuals, Tokens
from late_interaction.triton_kernels import forward_kernel, image_gradient_kernel, text_gradient_kernel
from late_interaction.triton_launch import Kernels, Options
from late_interaction.triton_layout import GROUP, Layout, power_of_two


def unavailable_reason(image_tokens: Tensor, longest: int) -> str:
    """Return why these kernels cannot compute this problem; "" if they can."""
    return triton_launch.unavailable_reason(image_tokens)


def launch_options(dtype: torch.dtype, d: int, capability: int) -> Options:
    """Return block sizes, warps and pipeline stages of the three kernels.

    They are for a GPU of compute ``capability`` (90 = 9.0; 0 = AMD's): the largest that neither spill registers nor ask
    for more shared memory than there is; two blocks of the forward share a processor.
    """
    wide, features = dtype == torch.float32, power_of_two(d)
    # Data-centre cards from Hopper on multiply from shared memory, where the image tokens stay. 12.0 has that of 8.6.
    large = 90 <= capability < 120
    resident = large and not wide and features <= 256
    forward = {
        "BLOCK_K": features if resident else min(features, 32 if wide else 64),
        "RESIDENT": resident,
        # Four warps read less from shared memory, but have the registers only where the image tokens stay there.
        "num_warps": 4 if resident else 8,
        "num_stages": 1 if resident else 3,
    }
    if not (wide or resident) and capability:  # not an option of AMD's compiler
        forward["maxnreg"] = 128
    block_d = min(features, 256 if resident else 32 if wide and not large else 128)
    backward = {"BLOCK_D": block_d, "num_warps": 8, "num_stages": 2}
    return {
        "forward": {"ROWS": 128, **forward},
        "image": {"ROWS": 128, **backward},
        "text": {"ROWS": 64 if wide or not capability else 128, **backward},
    }


def _dtypes(tokens: Tokens) -> tuple[torch.dtype, torch.dtype]:
    """Return the maps, in which the number of tokens itself stands for "none"."""
    return index_dtype(max(tokens.lengths) + 1), index_dtype(tokens.longest_image + 1)


def _allocate(
    tokens: Tokens, layout: Layout, several: bool, save: bool
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]:
    """Make the arg-max maps [groups, P, 64] and [tiles, images, 64], and the maximum over an image's blocks so far."""
    images, groups, tiles = tokens.image, len(layout.first), len(layout.group)
    b, rows = (len(tokens.patches), sum(tokens.patches)) if save else (0, 0)
    of_rows, of_entries = _dtypes(tokens)
    maps = images.new_empty(groups, rows, GROUP, dtype=of_rows), images.new_empty(tiles, b, GROUP, dtype=of_entries)
    best = images.new_empty(tiles, len(tokens.patches) if several else 0, GROUP, dtype=torch.float32)
    return maps, (best,)


KERNELS = Kernels(
    forward_kernel,
    image_gradient_kernel,
    text_gradient_kernel,
    launch_options,
    _allocate,
    _dtypes,
    multiplies_again=False,
    text_tiles=2,
)


def forward(tokens: Tokens, save_for_backward: bool = True) -> tuple[Pair, Residuals]:
    """Return s^I, s^T [images, texts] float32 and the arg-max maps [groups, P, 64] and [tiles, images, 64].

    A smooth maximum of exponentials beyond float32 is computed, and differentiated, by the tiled backend.
    """
    if tokens.temperature:
        if triton_smooth.beyond_range(tokens):
            return tiled.forward(tokens, save_for_backward)
        return triton_smooth.forward(tokens, save_for_backward)
    return triton_launch.forward(KERNELS, tokens, save_for_backward)


def backward(tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool] = (True, True)) -> Pair:
    """Return float32 gradients of both inputs; one that is not needed is an empty tensor."""
    if tokens.temperature:
        return (triton_smooth if residuals else tiled).backward(tokens, grads, residuals, needs)
    return triton_launch.backward(KERNELS, tokens, grads, residuals, needs)
