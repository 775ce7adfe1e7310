"""Launch the Triton kernels of a maximum: the three of either kind differ in what they keep, multiply again and read.

A maximum is a :class:`Kernels`. Images that differ in length have a launch for each number of rows that holds them.
Each program owns what it writes; where there are too few of them for a GPU they share the steps of one, and their parts
are added in a fixed order. So there are no atomics, and the same bits each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from filip.interaction.packing import Pair, Residuals, Tokens
from filip.interaction.triton_layout import (
    GROUP,
    Layout,
    Part,
    active_tiles,
    lay_out,
    listed,
    parts_of,
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


class _Launches(NamedTuple):
    """The arguments of all launches of a pass."""

    images: Tensor  # [P, d]
    texts: Tensor  # [T, d]
    layout: Layout
    parts: list[tuple[Part, Options]]  # one launch each, or one for every ROWS of its images
    fixed: dict[str, bool | int]

    @property
    def counts(self) -> tuple[int, int]:
        """Return the numbers of groups and tiles of captions."""
        return len(self.layout.first), len(self.layout.row) // GROUP


def _launches(kernels: Kernels, tokens: Tokens) -> _Launches:
    images, device = tokens.image.flatten(0, -2).contiguous(), tokens.image.device
    d, capability = images.shape[1], capability_of(device)
    parts = [(part, kernels.options(images.dtype, part.n1, d, capability)) for part in parts_of(tokens)]
    fixed = {"RAGGED": tokens.image_lengths is not None, "GROUP": GROUP, "WIDEN": _widen(images)}
    return _Launches(images, tokens.text.contiguous(), lay_out(tokens.lengths, device), parts, fixed)


def forward(
    kernels: Kernels, tokens: Tokens, save_for_backward: bool, numbers: tuple[float, ...] = ()
) -> tuple[Pair, Residuals]:
    """Return s^I, s^T [images, texts] float32 and what the kernels keep. ``numbers`` are their last arguments."""
    images, texts, layout, parts, fixed = launches = _launches(kernels, tokens)
    i2t = images.new_empty(tokens.shape, dtype=torch.float32)
    t2i = torch.empty_like(i2t)
    largest = max(int(options["forward"]["ROWS"]) for _, options in parts)
    residuals, handed_on = kernels.allocate(tokens, layout, largest, save_for_backward)
    with torch.cuda.device_of(images):  # Triton launches on the current device
        for part, options in parts:
            option = options["forward"]
            rows, blocks = int(option["ROWS"]), triton.cdiv(part.images, option["IMAGES"])
            for start in range(0, part.n1, rows):
                kernels.forward[(blocks, len(layout.first))](
                    images, texts, part.places, *layout[:4], layout.row, i2t, t2i, *residuals, *handed_on,
                    part.n1, images.shape[1], start, part.images, i2t.shape[1], *launches.counts, *numbers,
                    FIRST=start == 0, LAST=start + rows >= part.n1, SAVE=save_for_backward, **fixed, **option,
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
    launches = _launches(kernels, tokens)
    images, texts = launches[:2]
    per_image, per_text = (torch.tensor(n, device=images.device) for n in (tokens.patches, tokens.lengths))
    upstream = grads[0].float() / per_image[:, None], grads[1].float() / per_text
    of_images, of_texts = (tokens.image[:0].float(), texts[:0].float())
    with torch.cuda.device_of(images):
        if needs[0]:
            of_rows, scale = _image_gradient(kernels, launches, upstream, residuals, numbers)
            of_images = (of_rows * _per_row(scale, per_image, len(images))).view(tokens.image.shape)
        if needs[1]:
            of_rows, scale = _text_gradient(kernels, launches, upstream, residuals, numbers)
            of_texts = of_rows * _per_row(scale, per_text, len(texts))
    return of_images, of_texts


def _per_row(scale: Tensor, lengths: Tensor, rows: int) -> Tensor:
    return scale.flatten().repeat_interleave(lengths, output_size=rows)[:, None]


def _image_gradient(
    kernels: Kernels, launches: _Launches, upstream: Pair, residuals: Residuals, numbers: tuple[float, ...]
) -> Pair:
    """Return the gradient of the images' rows [P, d], to be multiplied by the scale of each image."""
    images, texts, layout, parts, fixed = launches
    weights, scale = scaled_weights(upstream, 1, layout, images.dtype)
    # [blocks of images, groups] of each part
    active = [active_tiles(part.of(weights), int(option["image"]["IMAGES"])) for part, option in parts]
    programs = [
        len(tiles) * triton.cdiv(part.n1, option["image"]["ROWS"])
        for tiles, (part, option) in zip(active, parts, strict=True)
    ]
    splits = _splits(sum(programs), len(layout.first))
    partial = images.new_empty(splits, *images.shape, dtype=torch.float32)
    read = (images, texts, partial, layout.length) if kernels.multiplies_again else (texts, partial)
    for (part, options), tiles, count in zip(parts, active, programs, strict=True):
        option = options["image"]
        kernels.image[(count, splits, triton.cdiv(images.shape[1], option["BLOCK_D"]))](
            *read, layout.first, layout.positions, layout.row, *weights, *residuals, part.places, *listed(tiles),
            part.n1, images.shape[1], part.images, len(images), *launches.counts, splits, *numbers, **fixed, **option,
        )  # fmt: skip
    return partial.sum(dim=0), scale


def _text_gradient(
    kernels: Kernels, launches: _Launches, upstream: Pair, residuals: Residuals, numbers: tuple[float, ...]
) -> Pair:
    """Return the gradient of the texts' rows [T, d], to be multiplied by the scale of each text."""
    images, texts, layout, parts, fixed = launches
    weights, scale = scaled_weights(upstream, 0, layout, images.dtype)
    group_of = layout.group[:: kernels.text_tiles].long()
    # [programs, blocks of images] of each part
    active = [
        active_tiles(part.of(weights), int(option["text"]["IMAGES"])).T[group_of] for part, option in parts
    ]
    splits = _splits(len(group_of), max(tiles.shape[1] for tiles in active))
    make = images.new_zeros if fixed["RAGGED"] else images.new_empty  # each part adds to those before
    partial = make(splits, *texts.shape, dtype=torch.float32)
    sides = (images, texts) if kernels.multiplies_again else (images,)
    for (part, options), tiles in zip(parts, active, strict=True):
        option = options["text"]
        kernels.text[(len(tiles), splits, triton.cdiv(texts.shape[1], option["BLOCK_D"]))](
            *sides, partial, layout.length, layout.group, layout.position, layout.row, *weights, *residuals,
            part.places, *listed(tiles), part.n1, texts.shape[1], part.images, len(texts), *launches.counts, splits,
            *numbers, **fixed, **option,
        )  # fmt: skip
    return partial.sum(dim=0), scale


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
