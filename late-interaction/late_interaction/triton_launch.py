"""Launch the Triton kernels of a maximum: the three of either kind differ in what they keep, multiply again and read.

A maximum is a :class:`Kernels`. Images are cut into blocks of 16, 32, 64 or 128 rows; a launch takes those of one size.
Each program owns its output; where there are too few of them for a GPU they share the steps of one, and their parts
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

from late_interaction.packing import Pair, Residuals, Tokens, scale_of_rows
from late_interaction.triton_layout import (
    GROUP,
    Layout,
    Part,
    active_tiles,
    by_group,
    lay_out,
    listed,
    parts_of,
    scaled_weights,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
PROGRAMS = 1024  # per launch, where there is work for them, so that 132 processors are evenly busy

Options = dict[str, dict[str, int | bool]]  # of "forward", "image" and "text"


@dataclass(frozen=True)
class Kernels:
    """The three kernels of a maximum, and how their arguments differ from another maximum's."""

    forward: Any
    image: Any  # the gradient of the images
    text: Any
    options: Callable[[torch.dtype, int, int], Options]  # of dtype, d and compute capability
    # Make the two residuals, and the state that the launches of an image hand on if there are several; of tokens,
    # layout, whether there are, and whether to save
    allocate: Callable[[Tokens, Layout, bool, bool], tuple[tuple[Tensor, Tensor], tuple[Tensor, ...]]]
    dtypes: Callable[[Tokens], tuple[torch.dtype, torch.dtype]]  # of the residuals
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


def of_rows(options: dict[str, int | bool], rows: int) -> dict[str, int | bool]:
    """Return a kernel's options for images that take ``rows`` of its block's rows each."""
    return {**options, "ROWS": rows, "IMAGES": options["ROWS"] // rows}


class _Launches(NamedTuple):
    """The arguments of all launches of a pass."""

    tokens: Tokens
    images: Tensor  # [P, d]
    layout: Layout
    options: Options

    @property
    def texts(self) -> Tensor:
        """Return the rows of all tiles of texts [entries, d], which the kernels then read from one address."""
        return self.tokens.text.index_select(0, self.layout.row)

    def counts(self, part: Part) -> tuple[int, ...]:
        """Return tokens of an image and features, and the numbers of blocks, images and their rows."""
        images, d = self.images.shape
        # Where images have numbers of their own: one that compiles nothing again
        n1 = part.rows if part.ragged else self.tokens.longest_image
        return n1, d, part.blocks, len(self.tokens.patches), images

    def parts(self, name: str) -> list[tuple[Part, dict[str, int | bool]]]:
        """Return the launches of a kernel, with its compile-time constants."""
        options = self.options[name]
        parts = parts_of(self.tokens, int(options["ROWS"]), name == "forward")
        fixed = {"GROUP": GROUP, "WIDEN": _widen(self.images)}
        return [(part, {**fixed, "RAGGED": part.ragged, **of_rows(options, part.rows)}) for part in parts]


def _launches(kernels: Kernels, tokens: Tokens) -> _Launches:
    images, device = tokens.image.flatten(0, -2).contiguous(), tokens.image.device
    options = kernels.options(images.dtype, images.shape[1], capability_of(device))
    return _Launches(tokens, images, lay_out(tokens.lengths, device), options)


def forward(
    kernels: Kernels, tokens: Tokens, save_for_backward: bool, numbers: tuple[float, ...] = ()
) -> tuple[Pair, Residuals]:
    """Return s^I, s^T [images, texts] float32 and the kernels' state. ``numbers`` are their last arguments."""
    launches = _launches(kernels, tokens)
    _, images, layout, _ = launches
    parts, texts = launches.parts("forward"), launches.texts
    i2t = images.new_empty(tokens.shape, dtype=torch.float32)
    t2i = torch.empty_like(i2t)
    several = not all(part.last for part, _ in parts)
    residuals, handed_on = kernels.allocate(tokens, layout, several, save_for_backward)
    with torch.cuda.device_of(images):  # Triton launches on the current device
        for part, option in parts:
            rows = part.padded(images, int(option["IMAGES"])) if kernels.multiplies_again else images
            kernels.forward[(triton.cdiv(part.blocks, option["IMAGES"]), len(layout.first))](
                rows, texts, part.places, *layout[:4], i2t, t2i, *residuals, *handed_on, *launches.counts(part),
                i2t.shape[1], images.shape[1], *numbers,
                FIRST=part.first, LAST=part.last, SAVE=save_for_backward, **option,
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
    images, layout = launches.images, launches.layout
    items = zip(residuals, kernels.dtypes(tokens), (len(layout.first), len(layout.group)), strict=True)
    residuals = tuple(kept.view(dtype).view(count, -1, GROUP) for kept, dtype, count in items)
    per_image, per_text = (torch.tensor(n, device=images.device) for n in (tokens.patches, tokens.lengths))
    upstream = grads[0].float() / per_image[:, None], grads[1].float() / per_text
    of_images, of_texts = tokens.image[:0].float(), tokens.text[:0].float()
    with torch.cuda.device_of(images):
        if needs[0]:
            of_rows, scale = _image_gradient(kernels, launches, upstream, residuals, numbers)
            of_images = (of_rows * scale_of_rows(scale, per_image, len(images))).view(tokens.image.shape)
        if needs[1]:
            of_rows, scale = _text_gradient(kernels, launches, upstream, residuals, numbers)
            of_texts = of_rows * scale_of_rows(scale, per_text, len(tokens.text))
    return of_images, of_texts


def _image_gradient(
    kernels: Kernels, launches: _Launches, upstream: Pair, residuals: Residuals, numbers: tuple[float, ...]
) -> Pair:
    """Return the gradient of the images' rows [P, d], to be multiplied by the scale of each image."""
    _, images, layout, _ = launches
    parts, texts = launches.parts("image"), launches.texts
    weights, scale = scaled_weights(upstream, 1, layout, images.dtype)
    # [blocks of images, groups] of each part
    active = [active_tiles(part.of(weights), int(option["IMAGES"])) for part, option in parts]
    splits = _splits(sum(map(len, active)), len(layout.first))
    partial = images.new_empty(splits, *images.shape, dtype=torch.float32)
    weights = by_group(weights)
    for (part, option), tiles in zip(parts, active, strict=True):
        inputs: tuple[Tensor, ...] = (texts, partial)
        if kernels.multiplies_again:
            inputs = (part.padded(images, int(option["IMAGES"])), *inputs, layout.length)
        kernels.image[(len(tiles), splits, triton.cdiv(images.shape[1], option["BLOCK_D"]))](
            *inputs, layout.first, layout.positions, *weights, *residuals, part.places, *listed(tiles),
            *launches.counts(part), len(layout.first), splits, *numbers, **option,
        )  # fmt: skip
    return partial.sum(dim=0), scale


def _text_gradient(
    kernels: Kernels, launches: _Launches, upstream: Pair, residuals: Residuals, numbers: tuple[float, ...]
) -> Pair:
    """Return the gradient of the texts' rows [T, d], to be multiplied by the scale of each text."""
    tokens, images, layout, _ = launches
    parts, texts = launches.parts("text"), tokens.text
    weights, scale = scaled_weights(upstream, 0, layout, images.dtype)
    group_of = layout.group[:: kernels.text_tiles].long()
    # [programs, blocks of images] of each part
    active = [active_tiles(part.of(weights), int(option["IMAGES"])).T[group_of] for part, option in parts]
    splits = _splits(len(group_of), max(tiles.shape[1] for tiles in active))
    make = images.new_zeros if parts[0][0].ragged else images.new_empty  # each part adds to those before
    partial = make(splits, *texts.shape, dtype=torch.float32)
    inputs = (launches.texts, partial) if kernels.multiplies_again else (partial,)
    weights = by_group(weights)
    for (part, option), tiles in zip(parts, active, strict=True):
        kernels.text[(len(tiles), splits, triton.cdiv(texts.shape[1], option["BLOCK_D"]))](
            part.padded(images, int(option["IMAGES"])), *inputs, layout.length, layout.group, layout.position,
            layout.row, *weights, *residuals, part.places, *listed(tiles), *launches.counts(part), len(texts), splits,
            *numbers, **option,
        )  # fmt: skip
    return partial.sum(dim=0), scale


def _splits(programs: int, steps: int) -> int:
    """Return the number of programs that share the ``steps`` of each of ``programs``, by the shapes alone."""
    return min(steps, triton.cdiv(PROGRAMS, programs))


def capability_of(device: torch.device) -> int:
    """Return 90 for compute capability 9.0; 0 for a card of AMD's, whose blocks have 64 KB of shared memory."""
    if torch.version.hip:
        return 0
    if device.type != "cuda":  # the interpreter
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _widen(tokens: Tensor) -> bool:
    # Triton's interpreter holds bfloat16 as integers and multiplies those; a GPU needs no detour.
    return INTERPRETED and tokens.dtype == torch.bfloat16
