"""Resize, flip and augment a batch of crops on the device that trains: the loader's workers then only decode.

The loader makes all random choices. So the images equal those of its workers, apart from rounding and from the borders
of pictures that AutoAugment rotates or shears.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from filip.images.eval_transform import EvalTransform
from filip.loading.augment import AutoAugment, Draws, TrainTransform
from filip.loading.config import DataConfig

_PIXELS = 1 << 24  # of padded crops that are resized at a time, with half a gigabyte of memory

_auto_augment = functools.cache(AutoAugment)
Crop = tuple[np.ndarray, Draws]  # uint8 [h, w, 3]


class Crops(NamedTuple):
    """A batch of crops of any sizes, as the loader passes them on."""

    values: Tensor  # uint8: the crops, [h, w, 3] each, one after the other
    draws: Tensor  # int64 [b, 5]: height, width, whether to flip, two numbers of AutoAugment's operations
    side: int  # to which they are resized


def read_image(
    transform: TrainTransform | EvalTransform, data: bytes, rng: random.Random, config: DataConfig
) -> Tensor | Crop:
    """Return uint8 ``[3, S, S]`` of an encoded image, or the crop that the device is to finish."""
    if config.augment_on == "device" and isinstance(transform, TrainTransform):
        return transform.crop(data, rng)
    # bytes, normalised on the device: a quarter of the shared memory and of the copying
    return torch.from_numpy(transform.pixels(data, rng)).permute(2, 0, 1)


def pack(crops: Sequence[Crop], side: int) -> Crops:
    """Collate crops."""
    rows = [(*crop.shape[:2], draws.flip, *draws.operations) for crop, draws in crops]
    values = np.concatenate([crop.reshape(-1) for crop, _ in crops])
    return Crops(torch.from_numpy(values), torch.tensor(rows, dtype=torch.int64), side)


@torch.no_grad()
def finish(crops: Crops, device: torch.device) -> Tensor:
    """Return uint8 ``[b, 3, S, S]`` on ``device``."""
    values, draws = (tensor.to(device, non_blocking=True) for tensor in crops[:2])
    sizes, longest = draws[:, :2].prod(1), crops.draws[:, :2].amax(0).tolist()
    starts, together = sizes.cumsum(0) - sizes, max(1, _PIXELS // math.prod(longest))
    parts = zip(starts.split(together), draws.split(together), strict=True)
    pixels = torch.cat([_resized(values.view(-1, 3), *part, longest, crops.side) for part in parts])
    for column in crops.draws[:, 3:].unbind(1):
        for number in filter(None, column.unique().tolist()):
            equal = (column == number).nonzero().squeeze(1).to(device, non_blocking=True)
            pixels[equal] = _auto_augment(crops.side).apply(pixels[equal], number)
    return pixels


def _resized(values: Tensor, starts: Tensor, draws: Tensor, longest: list[int], side: int) -> Tensor:
    """Return uint8 ``[n, 3, S, S]``, flipped where they should be, of crops that begin at ``starts`` of the values."""
    heights, widths, flip = draws[:, :3].view(-1, 3, 1, 1).unbind(1)
    y, x = (torch.arange(length, device=values.device) for length in longest)
    pixels = values[(starts.view(-1, 1, 1) + y[:, None] * widths + x).clamp_(max=len(values) - 1)]
    rows, columns = _bicubic(heights, longest[0], side), _bicubic(widths, longest[1], side)
    columns = torch.where(flip > 0, columns.flip(1), columns)
    pixels = torch.einsum("nhwc,ntw->nhct", pixels.float(), columns).round_().clamp_(0, 255)  # PIL rounds here, too
    return torch.einsum("nhct,nsh->ncst", pixels, rows).round_().clamp_(0, 255).to(torch.uint8)


def _bicubic(sizes: Tensor, longest: int, side: int) -> Tensor:
    """Return the weights ``[n, side, longest]`` of PIL's and torch's bicubic interpolation with antialiasing.

    sizes: ``[n, 1, 1]``, pixels to be resized to ``side``.
    """
    scale, pixel = sizes / side, torch.arange(longest, device=sizes.device)
    centre = scale * (torch.arange(side, device=sizes.device)[:, None] + 0.5)
    x = ((pixel + 0.5 - centre) / scale.clamp(min=1)).abs()
    weights = torch.where(x < 1, (1.5 * x - 2.5) * x**2 + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2)
    weights = weights.masked_fill((x >= 2) | (pixel >= sizes), 0)
    return weights / weights.sum(-1, keepdim=True)
