"""Run pure PyTorch on any device and dtype: one tile of the similarity at a time, of which only winners are saved.

Forward. Texts are put in order of length, so that texts of equal length form a rectangle: a block of images
against such a run of texts is one matrix product without padding, viewed as [images, n1, texts, n2], and
both maxima are taken from it before the next tile overwrites it. Images that differ in length are put in order, too.
The two arg-max maps are saved, in the smallest integer type that fits.

Backward. The gradient of the tile is sparse: one entry per (image token, text) and one per (image, text
token). As a list of (image token, text token, weight) it is sorted by image token, and each image token's
gradient is the weighted sum of the text tokens in its segment; sorted by text token, it gives the other
side. No second product, no atomic additions, the same bits each time. Tried and found slower on a CPU: a dense
tile of weights with two more products, index_add, maxima by comparison instead of by index.

On other devices the backward is that dense tile: two products on tensor cores. Sorting and adding rows would read
1.8 TB for one of the 128 GPUs of the paper's base model, 2 seconds of a V100's memory, and take 1.6 GB of scratch.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from late_interaction import smooth_blocks
from late_interaction.lengths import Order, by_length, index_dtype, tiles
from late_interaction.packing import Pair, Residuals, Tokens, accumulation_dtype, product, scale_of_rows, scaled_by_item

# Rows of either side in one block of the backward on a CPU: 1,024 rows of 256 floats are a megabyte.
_ROWS = 1 << 10


class Maps(NamedTuple):
    """The arg-max maps that the forward leaves for the backward. Both sides are in order of length."""

    image: Tensor  # [P, texts]: each image token's winning token within the text
    text: Tensor  # [images, T]: each text token's winning token of the image


class Block(NamedTuple):
    """Some images of a tile, padded to the longest by repeating their last tokens, which changes no maximum."""

    rows: slice  # among the packed tokens of all images, in order of length
    padded: Tensor | None  # [images, n1] rows within the block; None: they are equally long
    inside: Tensor | None  # [images, n1]: which of these are not repeated
    kept: Tensor | None  # [rows of the block] their places among images * n1
    per_image: Tensor | int  # [images, 1] tokens of each, or of all

    def of(self, tokens: Tensor) -> Tensor:
        """Return the block's [images * n1, d] of all images' tokens."""
        return tokens[self.rows] if self.padded is None else tokens[self.rows][self.padded.flatten()]


def forward(tokens: Tokens, save_for_backward: bool = True) -> tuple[Pair, Residuals]:
    """Return s^I and s^T [images, texts], and the arg-max maps.

    Without ``save_for_backward`` it makes no maps and takes half the time: PyTorch's maximum is fast, its maximum with
    the index is not.
    """
    if tokens.temperature:
        return smooth_blocks.forward(tokens)
    image, text, device = tokens.image, tokens.text, tokens.image.device
    images_by, texts_by = _orders(tokens)
    image, text = _in_order(image.flatten(0, -2), tokens, images_by), text[texts_by.rows]
    i2t = image.new_empty(tokens.shape, dtype=accumulation_dtype(image.dtype))
    t2i = torch.empty_like(i2t)
    residuals: Residuals = ()
    if save_for_backward:
        residuals = Maps(*(image.new_empty(shape, dtype=dtype) for shape, dtype in _form(tokens)))
    blocks = functools.cache(functools.partial(_block, images_by, device))
    for images, texts in tiles(images_by.lengths, texts_by.lengths, device):
        span = slice(texts_by.offsets[texts.start], texts_by.offsets[texts.stop])
        block = blocks(images.start, images.stop)
        tile = product(block.of(image), text[span])
        tile = tile.view(images.stop - images.start, -1, texts.stop - texts.start, texts_by.lengths[texts.start])
        if isinstance(residuals, Maps):
            of_images, index = tile.max(dim=3)
            index = index.flatten(0, 1)
            residuals.image[block.rows, texts] = index if block.kept is None else index[block.kept]
            of_texts, index = tile.max(dim=1)
            index = index.flatten(1)
            if isinstance(block.per_image, Tensor):  # a repeated token may be rounded otherwise, and win
                index = torch.minimum(index, block.per_image - 1)
            residuals.text[images, span] = index
        else:
            of_images, of_texts = tile.amax(dim=3), tile.amax(dim=1)
        if block.inside is not None:
            of_images = torch.where(block.inside[..., None], of_images, 0)
        i2t[images, texts] = of_images.sum(dim=1) / block.per_image
        t2i[images, texts] = of_texts.mean(dim=2)
    back = texts_by.back
    if tokens.image_lengths is not None:
        i2t, t2i = i2t[images_by.back], t2i[images_by.back]
    return (i2t[:, back], t2i[:, back]), residuals


def _form(tokens: Tokens) -> list[tuple[tuple[int, int], torch.dtype]]:
    """Return shape and dtype of both maps."""
    images, texts = tokens.shape
    of_images = (sum(tokens.patches), texts), index_dtype(max(tokens.lengths))
    return [of_images, ((images, sum(tokens.lengths)), index_dtype(tokens.longest_image))]


def _orders(tokens: Tokens) -> tuple[Order, Order]:
    return by_length(tokens.patches, tokens.image.device), by_length(tokens.lengths, tokens.image.device)


def _in_order(of_images: Tensor, tokens: Tokens, order: Order) -> Tensor:
    """Return values of images, or of their tokens, in order of length."""
    if tokens.image_lengths is None:
        return of_images
    return of_images[order.items if len(of_images) == len(order.items) else order.rows]


def _block(order: Order, device: torch.device, first: int, last: int) -> Block:
    lengths, offsets = order.lengths[first:last], order.offsets
    rows = slice(offsets[first], offsets[last])
    if lengths[0] == lengths[-1]:
        return Block(rows, None, None, None, lengths[0])
    per_image = torch.tensor(lengths)[:, None]
    position = torch.arange(lengths[-1])
    start = torch.tensor(offsets[first:last])[:, None] - rows.start
    padded = start + torch.minimum(position, per_image - 1)
    inside = position < per_image
    valid = inside.flatten().nonzero()[:, 0]
    return Block(rows, *(part.to(device) for part in (padded, inside, valid, per_image)))


def backward(tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool] = (True, True)) -> Pair:
    """Return both inputs' gradients, in the accumulation dtype, from the gradients of s^I and s^T [images, texts]."""
    if tokens.temperature:
        return smooth_blocks.backward(tokens, grads, needs)
    image, text, device = tokens.image, tokens.text, tokens.image.device
    maps = Maps(*(item.view(dtype).view(shape) for item, (shape, dtype) in zip(residuals, _form(tokens), strict=True)))
    wide = accumulation_dtype(image.dtype)
    images_by, texts_by = _orders(tokens)
    per_image, per_text = (torch.tensor(order.lengths, device=device) for order in (images_by, texts_by))
    of_i2t, of_t2i = (_in_order(grad.to(wide), tokens, images_by)[:, texts_by.items] for grad in grads)
    weights = of_i2t / per_image[:, None], of_t2i / per_text
    add = _by_sums if device.type == "cpu" else _by_products
    rows = _in_order(image.flatten(0, -2), tokens, images_by)
    of_images, of_texts = (
        torch.zeros(len(side) if need else 0, side.shape[1], dtype=wide, device=device)
        for side, need in zip((rows, text), needs, strict=True)
    )
    add(weights, rows, text, maps, (images_by, texts_by), needs, (of_images, of_texts))
    return (
        of_images.view(image.shape if needs[0] else (0,))
        if tokens.image_lengths is None
        else _put_back(of_images, images_by, needs[0]),
        _put_back(of_texts, texts_by, needs[1]),
    )


def _put_back(in_order: Tensor, order: Order, needed: bool) -> Tensor:
    if not needed:
        return in_order
    restored = torch.empty_like(in_order)
    restored[order.rows] = in_order
    return restored


def _by_sums(
    weights: Pair,
    image: Tensor,
    text: Tensor,
    maps: Maps,
    orders: tuple[Order, Order],
    needs: tuple[bool, bool],
    found: Pair,
) -> None:
    """Add the winners' rows to the gradients ``found`` that are needed; ``weights`` [images, texts] of both directions.

    Both sides are in order of length, in all but ``text``, which is in the caller's.
    """
    (grad_image, grad_text), (images_by, texts_by) = found, orders
    wide, device = grad_image.dtype, image.device
    image_of, text_of = (
        torch.repeat_interleave(
            torch.arange(len(order.lengths), device=device),
            torch.tensor(order.lengths, device=device),
            output_size=order.offsets[-1],
        )
        for order in orders
    )
    for texts, span in _runs(texts_by.offsets, _ROWS):
        of_block = text[texts_by.rows[span]].to(wide)
        text_starts = torch.tensor(texts_by.offsets[texts], device=device) - span.start
        for images, rows in _runs(images_by.offsets, _ROWS):
            image_starts = torch.tensor(images_by.offsets[images], device=device) - rows.start
            image_rows, text_rows, weight = _entries(
                maps.image[rows, texts] + text_starts,
                maps.text[images, span] + image_starts[:, None],
                weights[0][image_of[rows], texts],
                weights[1][images][:, text_of[span]],
            )
            block = image[rows].to(wide)
            if needs[0]:
                grad_image[rows].add_(_segment_sums(image_rows, text_rows, weight, of_block, len(block)))
            if needs[1]:
                grad_text[span].add_(_segment_sums(text_rows, image_rows, weight, block, len(of_block)))


def _by_products(
    weights: Pair,
    image: Tensor,
    text: Tensor,
    maps: Maps,
    orders: tuple[Order, Order],
    needs: tuple[bool, bool],
    found: Pair,
) -> None:
    """Do what :func:`_by_sums` does by two products of dense tiles of weights in the tokens' dtype.

    So that 16 bits lose no small weight, each image's (and for the other gradient each text's) are scaled.
    """
    (grad_image, grad_text), (images_by, texts_by) = found, orders
    dtype, device = image.dtype, image.device
    by_item = [scaled_by_item(weights, dim) for dim in (1, 0)]
    scales = [scale for _, scale in by_item]
    scaled = [[weight.to(dtype) for weight in pair] for pair, _ in by_item]
    blocks = functools.cache(functools.partial(_block, images_by, device))
    for images, texts in tiles(images_by.lengths, texts_by.lengths, device):
        span = slice(texts_by.offsets[texts.start], texts_by.offsets[texts.stop])
        block = blocks(images.start, images.stop)
        count, length = images.stop - images.start, texts_by.lengths[texts.start]
        of_block = maps.image[block.rows, texts].long()
        to_text = (of_block if block.padded is None else of_block[block.padded.flatten()]).view(
            count, -1, texts.stop - texts.start, 1
        )
        shape = *to_text.shape[:3], length
        to_image = maps.text[images, span].view(count, 1, *shape[2:]).long()
        for side in (0, 1):
            if not needs[side]:
                continue
            of_image, of_text = (weight[images, None, texts, None] for weight in scaled[side])
            if block.inside is not None:
                of_image = torch.where(block.inside[..., None, None], of_image, 0)
            tile = image.new_zeros(shape)
            tile.scatter_(3, to_text, of_image.expand_as(to_text))
            tile.scatter_add_(1, to_image, of_text.expand_as(to_image))
            flat = tile.view(shape[0] * shape[1], -1)
            if side == 1:
                grad_text[span].add_(product(flat.T, block.of(image).T))
                continue
            summed = product(flat, text[texts_by.rows[span]].T)
            grad_image[block.rows].add_(summed if block.kept is None else summed[block.kept])
    for needed, gradient, scale, order in zip(needs, found, scales, orders, strict=True):
        if needed:
            gradient *= scale_of_rows(scale, torch.tensor(order.lengths, device=device), len(gradient))


def _entries(
    to_text: Tensor, to_image: Tensor, i2t_weight: Tensor, t2i_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the non-zeros of one block's gradient of the similarity: image row, text row and weight of each.

    ``to_text`` [image rows, texts] and ``to_image`` [images, text rows] hold the winners' rows within the block; the
    weights are of their shapes.
    """
    image_rows = torch.arange(len(to_text), device=to_text.device)
    text_rows = torch.arange(to_image.shape[1], device=to_text.device)
    return (
        torch.cat([image_rows.repeat_interleave(to_text.shape[1]), to_image.flatten()]),
        torch.cat([to_text.flatten(), text_rows.repeat(len(to_image))]),
        torch.cat([i2t_weight.flatten(), t2i_weight.flatten()]),
    )


def _segment_sums(target: Tensor, source: Tensor, weights: Tensor, table: Tensor, targets: int) -> Tensor:
    """Return [targets, d]: row t is the sum of weights[e] * table[source[e]] over the entries e with target t."""
    # A flat sort of 16-bit integers is a radix sort in PyTorch on CPUs, three times as fast as one of 64-bit integers.
    keys = target.to(torch.int16 if targets <= torch.iinfo(torch.int16).max else torch.int64)
    keys, order = keys.sort(stable=True)
    bounds = torch.arange(targets, dtype=keys.dtype, device=keys.device)
    starts = torch.searchsorted(keys, bounds)
    return F.embedding_bag(source[order], table, starts, per_sample_weights=weights[order], mode="sum")


def _runs(offsets: list[int], rows: int) -> Iterator[tuple[slice, slice]]:
    """Yield runs of items with at most ``rows`` rows together, or of one that has more, and their rows."""
    first = 0
    while first + 1 < len(offsets):
        last = max(first + 1, bisect.bisect_right(offsets, offsets[first] + rows) - 1)
        yield slice(first, last), slice(offsets[first], offsets[last])
        first = last
