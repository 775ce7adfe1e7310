"""Launch the Triton kernels of a maximum: the three of either kind differ in what they keep, multiply again and read.

A maximum is a :class:`Kernels`. Each program owns what it writes; where there are too few of them for a GPU they share
the steps of one, and their parts are added in a fixed order. So there are no atomics, and the same bits each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from filip.interaction.packing import Pair, Residuals, Tokens
from filip.interaction.triton_layout import (
    GROUP,
    Layout,
    active_tiles,
    lay_out,
    listed,
    power_of_two,
    scaled_weights,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
PROGRAMS = 1024  # per launch, where there is work for them, so that 132 processors are evenly busy

Options = dict[str, dict[str, int | bool]]  # of "forward", "image" and "text"


@dataclass(frozen=True)
class Kernels:
    """The three kernels of a maximum, and how their arguments differ from those of another one."""

    forward: Any
    image: Any  # the gradient of the images
    text: Any
    options: Callable[[torch.dtype, int, int, int], Options]  # of dtype, n1, d and compute capability
    # Make the two residuals, and what several launches of one image hand on, for the rows of one launch
    allocate: Callable[[Tokens, Layout, int, bool], tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]]
    multiplies_again: bool  # the gradients read the tokens of both sides
    text_tiles: int  # tiles of one group that a program of the texts' gradient takes at once


def unavailable_reason(image_tokens: Tensor) -> str:
    """Return why Triton's kernels cannot compute this problem; "" if they can."""
    if image_tokens.dim() == 2:
        return "the Triton kernels take images of equally many tokens"
    if image_tokens.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"the Triton kernels take float16, bfloat16 and float32, not {image_tokens.dtype}"
    if INTERPRETED and image_tokens.device.type == "cpu":
        return ""
    if image_tokens.device.type != "cuda":
        return f"the Triton kernels run on CUDA devices, not on {image_tokens.device.type}"
    return ""


def block_rows(n1: int, most: int) -> dict[str, int | bool]:
    """Return the rows of an image in a block of ``most`` rows, and the images next to one another in it."""
    rows = min(power_of_two(n1), most)
    return {"ROWS": rows, "IMAGES": most // rows}


def forward(
    kernels: Kernels, tokens: Tokens, save_for_backward: bool, numbers: tuple[float, ...] = ()
) -> tuple[Pair, Residuals]:
    """Return s^I, s^T [images, texts] float32 and what the kernels keep. ``numbers`` are their last arguments."""
    images, texts, lengths = tokens.image.contiguous(), tokens.text.contiguous(), tokens.lengths
    b, n1, d = images.shape
    layout = lay_out(lengths, images.device)
    groups, tiles = len(layout.first), len(layout.row) // GROUP
    options = kernels.options(images.dtype, n1, d, capability_of(images.device))["forward"]
    rows, blocks = int(options["ROWS"]), triton.cdiv(b, options["IMAGES"])
    i2t = images.new_empty(b, len(lengths), dtype=torch.float32)
    t2i = torch.empty_like(i2t)
    residuals, handed_on = kernels.allocate(tokens, layout, rows, save_for_backward)
    with torch.cuda.device_of(images):  # Triton launches on the current device
        for start in range(0, n1, rows):
            kernels.forward[(blocks, groups)](
                images, texts, *layout[:4], layout.row, i2t, t2i, *residuals, *handed_on,
                n1, d, start, b, len(lengths), groups, tiles, *numbers,
                FIRST=start == 0, LAST=start + rows >= n1, SAVE=save_for_backward, GROUP=GROUP,
                WIDEN=_widen(images), **options,
            )  # fmt: skip
    return (i2t, t2i), residuals if save_for_backward else ()


def backward(
    kernels: Kernels,
    tokens: Tokens,
    grads: Pair,
    residuals: Residuals,
    needs: tuple[bool, bool],
    numbers: tuple[float, ...] = (),
) -> Pair:
    """Return float32 gradients of both inputs; one that is not needed is an empty tensor."""
    images, texts, lengths = tokens.image.contiguous(), tokens.text.contiguous(), tokens.lengths
    b, n1, d = images.shape
    layout = lay_out(lengths, images.device)
    options = kernels.options(images.dtype, n1, d, capability_of(images.device))
    per_text = torch.tensor(lengths, device=images.device)
    upstream = grads[0].float() / n1, grads[1].float() / per_text
    shared = (*residuals, n1, d, b, len(layout.first), len(layout.row) // GROUP)
    fixed = {"GROUP": GROUP, "WIDEN": _widen(images)}
    grad_images = images.new_empty(0, n1, d, dtype=torch.float32)
    grad_texts = texts.new_empty(0, d, dtype=torch.float32)
    with torch.cuda.device_of(images):
        if needs[0]:
            weights, scale = scaled_weights(upstream, 1, layout, images.dtype)
            option = options["image"]
            active = active_tiles(weights, int(option["IMAGES"]))  # [blocks of images, groups]
            programs = len(active) * triton.cdiv(n1, option["ROWS"])
            partial = images.new_empty(_splits(programs, active.shape[1]), b, n1, d, dtype=torch.float32)
            read = (images, texts, partial, layout.length) if kernels.multiplies_again else (texts, partial)
            kernels.image[(programs, len(partial), triton.cdiv(d, option["BLOCK_D"]))](
                *read, layout.first, layout.positions, layout.row, *weights, *listed(active), *shared,
                len(partial), *numbers, **fixed, **option,
            )  # fmt: skip
            grad_images = partial.sum(dim=0) * scale[:, :, None]
        if needs[1]:
            weights, scale = scaled_weights(upstream, 0, layout, images.dtype)
            option = options["text"]
            of_groups = active_tiles(weights, int(option["IMAGES"])).T  # [groups, blocks of images]
            active = of_groups[layout.group[:: kernels.text_tiles].long()]
            splits = _splits(len(active), active.shape[1])
            partial = images.new_empty(splits, len(texts), d, dtype=torch.float32)
            sides = (images, texts) if kernels.multiplies_again else (images,)
            kernels.text[(len(active), splits, triton.cdiv(d, option["BLOCK_D"]))](
                *sides, partial, layout.length, layout.group, layout.position, layout.row, *weights, *listed(active),
                *shared, len(texts), splits, *numbers, **fixed, **option,
            )  # fmt: skip
            of_rows = scale.flatten().repeat_interleave(per_text, output_size=len(texts))
            grad_texts = partial.sum(dim=0) * of_rows[:, None]
    return grad_images, grad_texts


def _splits(programs: int, steps: int) -> int:
    """Return among how many programs to divide the ``steps`` of each of ``programs``, by the shapes alone."""
    return min(steps, triton.cdiv(PROGRAMS, programs))


def capability_of(device: torch.device) -> int:
    if device.type != "cuda":  # the interpreter
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _widen(tokens: Tensor) -> bool:
    # Triton's interpreter holds bfloat16 as integers and multiplies those; a GPU needs no detour.
    return INTERPRETED and tokens.dtype == torch.bfloat16
