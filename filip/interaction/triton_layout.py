"""Lay out what the Triton kernels multiply: captions in groups of 64, and weights that 16 bits can hold.

A tile of the kernels is *one position* of the 64 captions of a group: 64 rows of text tokens. Captions are put in order
of length first, so that those of a group are about equally long; one that ends before the longest repeats its last
token, which cannot change a maximum. Nothing here needs Triton.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.interaction.lengths import by_length, derived
from filip.interaction.packing import Pair, Tokens, scaled_by_item

GROUP = 64  # captions in a group: the text rows of a tile
# A scaled weight below this is 0 in float16 and dropped in all types, 2^-38 of the largest: less than float32's
# rounding of the sum, for up to 30,000 captions even if every one is dropped.
NEGLIGIBLE = 2.0**-24


class Layout(NamedTuple):
    """The order of captions by length, in groups of 64; a slot per caption, an entry per caption and position.

    A group has an even number of tiles, since the text gradient takes two at once: where its longest caption has an odd
    number of tokens, nothing reads the last tile.
    """

    text: Tensor  # [slots] int32: the caller's index of the caption; -1 where the last group has none
    length: Tensor  # [slots] int32: its tokens; 0 where there is none
    first: Tensor  # [groups] int32: the group's first tile, of 64 entries
    positions: Tensor  # [groups] int32: tokens of its longest caption
    group: Tensor  # [tiles] int32; tiles are in order of group and position
    position: Tensor  # [tiles] int32
    row: Tensor  # [entries] int32: the packed row of the token; a caption that has ended repeats its last


def lay_out(lengths: list[int], device: torch.device) -> Layout:
    """Return where the kernels find the tokens of captions of ``lengths`` tokens, computed once for Lengths."""
    return derived(lengths, _lay_out, device)


def _lay_out(lengths: list[int], device: torch.device) -> Layout:
    order = by_length(lengths, torch.device("cpu"))
    missing = -len(lengths) % GROUP
    length = F.pad(torch.tensor(order.lengths), (0, missing))
    before = F.pad(
        order.rows[order.offsets[:-1]], (0, missing)
    )  # the caller's row of each caption's first token
    positions = length.view(-1, GROUP).amax(dim=1)
    tiles = positions + positions % 2
    first = tiles.cumsum(0) - tiles
    group = torch.repeat_interleave(tiles)
    position = torch.arange(len(group)) - first[group]
    slot = group[:, None] * GROUP + torch.arange(GROUP)
    row = before[slot] + torch.minimum(position[:, None], (length[slot] - 1).clamp_min(0))
    found = (
        F.pad(order.items, (0, missing), value=-1),
        length,
        first,
        positions,
        group,
        position,
        row.flatten(),
    )
    return Layout(*(part.to(device, torch.int32) for part in found))


class Part(NamedTuple):
    """Images that one launch takes."""

    places: Tensor  # [3, images] int32: the caller's index of each, its first row, its tokens; empty: all, in order
    images: int
    n1: int  # tokens of each; rows that hold them, where they differ

    def of(self, weights: Pair) -> Pair:
        """Return the weights [images, slots] of these images."""
        if not self.places.numel():
            return weights
        return weights[0][self.places[0].long()], weights[1][self.places[0].long()]


def parts_of(tokens: Tokens) -> list[Part]:
    """Return one part, or for ``image_lengths`` one for each number of rows that blocks of 16, 32 or 64 hold."""
    if tokens.image_lengths is None:
        return [Part(tokens.image.new_empty(0, dtype=torch.int32), *tokens.image.shape[:2])]
    return derived(tokens.image_lengths, _parts, tokens.image.device)


def _parts(lengths: list[int], device: torch.device) -> list[Part]:
    tokens = torch.tensor(lengths)
    first, rows = tokens.cumsum(0) - tokens, torch.tensor([padded(n, 64) for n in lengths])
    found = []
    for n1 in rows.unique().tolist():
        index = (rows == n1).nonzero()[:, 0]
        places = torch.stack([index, first[index], tokens[index]])
        found.append(Part(places.to(device, torch.int32), len(index), n1))
    return found


def scaled_weights(upstream: Pair, dim: int, layout: Layout, dtype: torch.dtype) -> tuple[Pair, Tensor]:
    """Return both weights [images, slots] in the tokens' dtype, scaled item by item along ``dim``; and the scales."""
    by_item, scale = scaled_by_item(upstream, dim)
    weights = []
    for weight in by_item:
        scaled = weight[:, layout.text.long()]
        negligible = (scaled.abs() <= NEGLIGIBLE) | (layout.length == 0)
        weights.append(scaled.masked_fill(negligible, 0).to(dtype))
    return (weights[0], weights[1]), scale


def active_tiles(weights: Pair, images: int) -> Tensor:
    """Return [blocks of images, groups] bool: where some weight is not zero."""
    some = ((weights[0] != 0) | (weights[1] != 0)).view(len(weights[0]), -1, GROUP).any(dim=2)
    return F.pad(some, (0, 0, 0, -len(some) % images)).view(-1, images, some.shape[1]).any(dim=1)


def listed(active: Tensor) -> Pair:
    """Return per row of ``active`` the columns that are true, before those that are not; and how many are true."""
    order = active.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
    return order.int(), active.sum(dim=1, dtype=torch.int32)


def index_dtype(size: int) -> torch.dtype:
    """Return the type of a map whose numbers go up to ``size`` itself, which stands for "none"."""
    if size <= 255:
        return torch.uint8
    return torch.int16 if size < 1 << 15 else torch.int32


def power_of_two(number: int) -> int:
    """Return the smallest power of two >= number, and >= 16, which tensor cores want."""
    return max(16, 1 << (number - 1).bit_length())


def padded(n1: int, most: int) -> int:
    """Return the rows that an image takes in blocks of 16, 32, ... or ``most`` rows."""
    size = min(most, power_of_two(n1))
    return -(-n1 // size) * size
