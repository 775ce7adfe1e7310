"""Run Triton kernels on GPUs: one product tile feeds both maxima; the backward multiplies the winners' weights.

Status: written for fp16, bf16 and float32 on NVIDIA compute capability 8.0 and newer. Tests compare every value in
Triton's interpreter on a CPU (``TRITON_INTERPRET=1``) and look at the machine code for 8.0 and 9.0
(tests/interaction/test_triton.py); no GPU has run them. Triton dropped Volta's tensor cores after 3.1, so on V100
"auto" takes the tiled backend. float64 is not supported.

Layout. Captions are put in order of length and cut into groups of 64. A tile is *one position* of the 64 captions of a
group: 64 rows of text tokens, those of captions that end before the group's longest repeating their last token, which
cannot change a maximum. So captions of any length are scored by one kernel with almost no padding, and the maximum over
the tokens of a caption is a running maximum over tiles, element by element, that never crosses a thread. An image
occupies 16, 32, 64 or 128 rows of a block; longer ones are scored 128 rows at a time.

Backward. From the arg-max maps a tile of the similarity's gradient is rebuilt in registers (two one-hot matrices times
their weights) and multiplied with the tokens of the other side. Adding the winners' rows instead, as on the CPU, is a
thirteenth of the arithmetic, but outside the tensor cores, and has to read a row for each addition: no faster
(docs/interaction_cost.md has the estimate). Tiles whose weights are all negligible are left out. No atomics: each
program owns what it writes, and the result has the same bits each time.
"""

from __future__ import annotations

import os

import torch
import triton
from torch import Tensor

from filip.interaction.packing import Pair, Residuals, Tokens
from filip.interaction.triton_kernels import forward_kernel, image_gradient_kernel, text_gradient_kernel
from filip.interaction.triton_layout import (
    GROUP,
    active_tiles,
    index_dtype,
    lay_out,
    listed,
    power_of_two,
    scaled_weights,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
PROGRAMS = 1024  # per launch, where there is work for them, so that 132 processors are evenly busy


def unavailable_reason(image_tokens: Tensor, longest: int) -> str:
    """Return why these kernels cannot compute this problem; "" if they can."""
    if image_tokens.dim() == 2:
        return "the Triton kernels take images of equally many tokens"
    if image_tokens.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"the Triton kernels take float16, bfloat16 and float32, not {image_tokens.dtype}"
    if INTERPRETED and image_tokens.device.type == "cpu":
        return ""
    if image_tokens.device.type != "cuda":
        return f"the Triton kernels run on CUDA devices, not on {image_tokens.device.type}"
    return ""


def launch_options(dtype: torch.dtype, n1: int, d: int, capability: int) -> dict[str, dict[str, int | bool]]:
    """Return block sizes, warps and pipeline stages of the three kernels.

    They are for a GPU of compute ``capability`` (90 = 9.0).

    They are the largest that neither spill registers nor ask for more shared memory than there is; two blocks of the
    forward share a processor.
    """
    wide, features = dtype == torch.float32, power_of_two(d)
    # Data-centre cards from Hopper on multiply from shared memory, where the image tokens stay; others would need them
    # in registers, which do not hold them. And 12.0 has the shared memory of 8.6, 99 KB.
    large = 90 <= capability < 120
    resident = large and not wide and features <= 256
    forward = {
        "BLOCK_K": features if resident else min(features, 32 if wide else 64),
        "RESIDENT": resident,
        # Two blocks share a processor and each hides the other's waits. Four warps read less from shared memory for
        # the same product, but they have the registers only where the image tokens stay there.
        "num_warps": 4 if resident else 8,
        "num_stages": 1 if resident else 3,
    }
    if not (wide or resident):
        forward["maxnreg"] = 128
    block_d = min(features, 256 if resident else 32 if wide and not large else 128)
    backward = {"BLOCK_D": block_d, "num_warps": 8, "num_stages": 2}
    return {
        "forward": {**_rows(n1, 128), **forward},
        "image": {**_rows(n1, 128), **backward},
        "text": {**_rows(n1, 64), **backward},
    }


def _rows(n1: int, most: int) -> dict[str, int]:
    """Return the rows of an image in a block of ``most`` rows, and the images next to one another in it."""
    rows = min(power_of_two(n1), most)
    return {"ROWS": rows, "IMAGES": most // rows}


def forward(tokens: Tokens, save_for_backward: bool = True) -> tuple[Pair, Residuals]:
    """Return s^I, s^T [images, texts] float32 and the arg-max maps [images, n1, slots] and [images, entries]."""
    images, texts, lengths = tokens.image.contiguous(), tokens.text.contiguous(), tokens.lengths
    b, n1, d = images.shape
    layout = lay_out(lengths, images.device)
    slots, entries, groups = len(layout.text), len(layout.row), len(layout.first)
    i2t = images.new_empty(b, len(lengths), dtype=torch.float32)
    t2i = torch.empty_like(i2t)
    kept = b if save_for_backward else 0
    image_map = images.new_empty(kept, n1, slots, dtype=index_dtype(max(lengths)))
    text_map = images.new_empty(kept, entries, dtype=index_dtype(n1))
    options = launch_options(images.dtype, n1, d, _capability(images.device))["forward"]
    rows, blocks = options["ROWS"], triton.cdiv(b, options["IMAGES"])
    # The maximum over the rows scored so far, for images that take several launches, and its row
    best = images.new_empty(b if n1 > rows else 0, entries, dtype=torch.float32)
    best_row = torch.empty_like(best, dtype=torch.int32)
    with torch.cuda.device_of(images):  # Triton launches on the current device
        for start in range(0, n1, rows):
            forward_kernel[(blocks, groups)](
                images, texts, *layout[:4], layout.row, i2t, t2i, image_map, text_map, best, best_row,
                n1, d, start, b, len(lengths), groups, entries // GROUP,
                FIRST=start == 0, LAST=start + rows >= n1, SAVE=save_for_backward, GROUP=GROUP,
                WIDEN=_widen(images), **options,
            )  # fmt: skip
    return (i2t, t2i), (image_map, text_map) if save_for_backward else ()


def backward(
    tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool] = (True, True)
) -> Pair:
    """Return float32 gradients of both inputs; one that is not needed is an empty tensor."""
    images, texts, lengths = tokens.image.contiguous(), tokens.text.contiguous(), tokens.lengths
    b, n1, d = images.shape
    device = images.device
    layout = lay_out(lengths, device)
    options = launch_options(images.dtype, n1, d, _capability(device))
    per_text = torch.tensor(lengths, device=device)
    upstream = grads[0].float() / n1, grads[1].float() / per_text
    shared = (*residuals, n1, d, b, len(layout.first), len(layout.row) // GROUP)
    grad_images = images.new_empty(0, n1, d, dtype=torch.float32)
    grad_texts = texts.new_empty(0, d, dtype=torch.float32)
    with torch.cuda.device_of(images):
        if needs[0]:
            weights, scale = scaled_weights(upstream, 1, layout, images.dtype)
            option = options["image"]
            active = active_tiles(weights, option["IMAGES"])  # [blocks of images, groups]
            chunks = triton.cdiv(n1, option["ROWS"])
            programs = len(active) * chunks
            partial = images.new_empty(_splits(programs, active.shape[1]), b, n1, d, dtype=torch.float32)
            image_gradient_kernel[(programs, len(partial), triton.cdiv(d, option["BLOCK_D"]))](
                texts, partial, layout.first, layout.positions, layout.row, *weights, *listed(active), *shared,
                len(partial), GROUP=GROUP, WIDEN=_widen(images), **option,
            )  # fmt: skip
            grad_images = partial.sum(dim=0) * scale[:, :, None]
        if needs[1]:
            weights, scale = scaled_weights(upstream, 0, layout, images.dtype)
            option = options["text"]
            of_groups = active_tiles(weights, option["IMAGES"]).T  # [groups, blocks of images]
            active = of_groups[layout.group[::2].long()]  # a program has two tiles of one group
            partial = images.new_empty(
                _splits(len(active), active.shape[1]), len(texts), d, dtype=torch.float32
            )
            text_gradient_kernel[(len(active), len(partial), triton.cdiv(d, option["BLOCK_D"]))](
                images, partial, layout.length, layout.group, layout.position, layout.row, *weights, *listed(active),
                *shared, len(texts), len(partial), GROUP=GROUP, WIDEN=_widen(images), **option,
            )  # fmt: skip
            of_rows = scale.flatten().repeat_interleave(per_text, output_size=len(texts))
            grad_texts = partial.sum(dim=0) * of_rows[:, None]
    return grad_images, grad_texts


def _splits(programs: int, steps: int) -> int:
    """Return among how many programs to divide the ``steps`` of each of ``programs``, by the shapes alone."""
    return min(steps, triton.cdiv(PROGRAMS, programs))


def _capability(device: torch.device) -> int:
    if device.type != "cuda":  # the interpreter
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _widen(tokens: Tensor) -> bool:
    # Triton's interpreter holds bfloat16 as integers and multiplies those; a GPU needs no detour.
    return INTERPRETED and tokens.dtype == torch.bfloat16
