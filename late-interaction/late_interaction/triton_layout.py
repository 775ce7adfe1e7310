"""Lay out the operands of the Triton kernels: captions in groups of 64, and weights that 16 bits can hold.

Why they lie so is in triton_backend.py. Nothing here needs Triton.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from late_interaction.lengths import by_length, derived
from late_interaction.packing import Pair, Tokens, scaled_by_item

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
    before = F.pad(order.rows[order.offsets[:-1]], (0, missing))  # the caller's row of each caption's first token
    positions = length.view(-1, GROUP).amax(dim=1)
    tiles = positions + positions % 2
    first = tiles.cumsum(0) - tiles
    group = torch.repeat_interleave(tiles)
    position = torch.arange(len(group)) - first[group]
    slot = group[:, None] * GROUP + torch.arange(GROUP)
    row = before[slot] + torch.minimum(position[:, None], (length[slot] - 1).clamp_min(0))
    found = (F.pad(order.items, (0, missing), value=-1), length, first, positions, group, position, row.flatten())
    return Layout(*(part.to(device, torch.int32) for part in found))


class Part(NamedTuple):
    """Blocks of equally many rows that one launch takes."""

    places: Tensor  # [4, blocks] int32: index, first row and tokens of the image, and the token that begins the block
    blocks: int
    rows: int
    first: bool  # in order: no block of these images comes before, or after
    last: bool

    @property
    def ragged(self) -> bool:
        """Return whether the kernel reads ``places``; where those are empty, all images have one block each."""
        return self.places.numel() > 0

    def of(self, weights: Pair) -> Pair:
        """Return the weights [images, slots] of these images."""
        if not self.ragged:
            return weights
        return weights[0][self.places[0].long()], weights[1][self.places[0].long()]

    def padded(self, images: Tensor, count: int) -> Tensor:
        """Return the rows of ``images`` [P, d] in blocks, zeros elsewhere, for programs of ``count`` blocks."""
        if self.ragged:
            _, first, tokens, start = self.places.long()[:, :, None]
            token = start + torch.arange(self.rows, device=images.device)
            of_blocks = images[first + token.minimum(tokens - 1)].masked_fill_((token >= tokens)[:, :, None], 0)
        else:
            of_blocks = images.view(self.blocks, -1, images.shape[1])
        missing = self.rows - of_blocks.shape[1], -self.blocks % count
        return F.pad(of_blocks, (0, 0, 0, missing[0], 0, missing[1]))


def cut(tokens: int, most: int) -> list[tuple[int, int]]:
    """Cut an image into blocks of 16, 32, ... or ``most`` rows; return the first token and the rows of each.

    A block is at least three quarters full, but for one of 16 or 32 rows.
    """
    blocks, start = [], 0
    while start < tokens:
        rows = min(power_of_two(tokens - start), most)
        if rows > 32 and 4 * (tokens - start) <= 3 * rows:
            rows //= 2
        blocks.append((start, rows))
        start += rows
    return blocks


def rows_of(tokens: int, most: int) -> int:
    """Return the rows that an image takes in all its blocks."""
    return sum(rows for _, rows in cut(tokens, most))


def parts_of(tokens: Tokens, most: int, in_order: bool = False) -> list[Part]:
    """Return the launches that take all images in blocks of at most ``most`` rows, one for each number of rows.

    ``in_order``: the launches take the blocks of an image one after the other.
    """
    b, images = len(tokens.patches), tokens.image
    if tokens.image_lengths is None and len(blocks := cut(images.shape[1], most)) == 1:
        return [Part(images.new_empty(0, dtype=torch.int32), b, blocks[0][1], True, True)]
    return derived(tokens.patches, _parts, images.device, most, in_order)


def _parts(lengths: list[int], device: torch.device, most: int, in_order: bool) -> list[Part]:
    tokens = torch.tensor(lengths)
    first = tokens.cumsum(0) - tokens
    launches: dict[tuple[int, int, bool], list[Tensor]] = {}
    for n in tokens.unique().tolist():
        index = (tokens == n).nonzero()[:, 0]
        for turn, (start, rows) in enumerate(cut(n, most)):
            launch = (turn, rows, start + rows >= n) if in_order else (0, rows, False)
            places = torch.stack([index, first[index], tokens[index], torch.full_like(index, start)])
            launches.setdefault(launch, []).append(places)
    parts = []
    for turn, rows, last in sorted(launches):
        joined = torch.cat(launches[turn, rows, last], dim=1).to(device, torch.int32)
        parts.append(Part(joined, joined.shape[1], rows, turn == 0, last))
    return parts


def scaled_weights(upstream: Pair, dim: int, layout: Layout, dtype: torch.dtype) -> tuple[Pair, Tensor]:
    """Return both weights [images, slots] in the tokens' dtype, scaled item by item along ``dim``; and the scales."""
    by_item, scale = scaled_by_item(upstream, dim)
    weights = []
    for weight in by_item:
        scaled = weight[:, layout.text.long()]
        negligible = (scaled.abs() <= NEGLIGIBLE) | (layout.length == 0)
        weights.append(scaled.masked_fill(negligible, 0).to(dtype))
    return (weights[0], weights[1]), scale


def by_group(weights: Pair) -> Pair:
    """Return weights [images, slots] as the kernels read them: [groups, images, 64]."""
    grouped = [weight.view(len(weight), -1, GROUP).transpose(0, 1).contiguous() for weight in weights]
    return grouped[0], grouped[1]


def active_tiles(weights: Pair, images: int) -> Tensor:
    """Return [blocks of images, groups] bool: where some weight is not zero."""
    some = ((weights[0] != 0) | (weights[1] != 0)).view(len(weights[0]), -1, GROUP).any(dim=2)
    return F.pad(some, (0, 0, 0, -len(some) % images)).view(-1, images, some.shape[1]).any(dim=1)


def listed(active: Tensor) -> Pair:
    """Return per row of ``active`` the columns that are true, before the others; and how many are true."""
    order = active.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
    return order.int(), active.sum(dim=1, dtype=torch.int32)


def power_of_two(number: int) -> int:
    """Return the smallest power of two >= number, and >= 16, which tensor cores want."""
    return max(16, 1 << (number - 1).bit_length())
