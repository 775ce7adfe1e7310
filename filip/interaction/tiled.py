"""Run pure PyTorch on any device and dtype: one tile of the similarity at a time, of which only winners are saved.

Forward. Texts are put in order of length, so that texts of equal length form a rectangle: a block of images
against such a run of texts is one matrix product without padding, viewed as [images, n1, texts, n2], and
both maxima are taken from it before the next tile overwrites it. The two arg-max maps are saved, in the
smallest integer type that fits.

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
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.interaction.packing import Pair, Residuals, Tokens, accumulation_dtype, offsets_of, product

# Elements of one tile of the similarity. On a CPU it should fit the second-level cache, on a GPU few launches matter.
_TILE_CPU, _TILE_ACCELERATOR = 1 << 18, 1 << 26
# Rows of either side in one block of the backward on a CPU: 1,024 rows of 256 floats are a megabyte.
_ROWS = 1 << 10


class Maps(NamedTuple):
    """The arg-max maps that the forward leaves for the backward. Texts are in order of length, not in the caller's."""

    image: Tensor  # [images, n1, texts]: the winning token within the text, of each image token
    text: Tensor  # [images, T]: the winning token of the image, of each text token


class Order(NamedTuple):
    """The order of texts by length, so that equally long ones form a rectangle."""

    texts: Tensor  # [texts] the caller's index of the texts, shortest first
    tokens: Tensor  # [T] the caller's row of each packed token in that order
    lengths: list[int]  # ascending
    offsets: list[int]


def forward(tokens: Tokens, save_for_backward: bool = True) -> tuple[Pair, Residuals]:
    """Return s^I and s^T [images, texts], and the arg-max maps.

    Without ``save_for_backward`` it makes no maps and takes half the time: PyTorch's maximum is fast, its maximum with
    the index is not.
    """
    image, text, lengths = tokens
    b, n1, _ = image.shape
    wide = accumulation_dtype(image.dtype)
    order = by_length(lengths, image.device)
    texts = text[order.tokens]
    i2t = image.new_empty(b, len(lengths), dtype=wide)
    t2i = torch.empty_like(i2t)
    residuals: Residuals = ()
    if save_for_backward:
        residuals = Maps(
            image.new_empty(b, n1, len(lengths), dtype=_index_dtype(order.lengths[-1])),
            image.new_empty(b, order.offsets[-1], dtype=_index_dtype(n1)),
        )
    for images, first, last in tiles(b, n1, order.lengths, image.device):
        span = slice(order.offsets[first], order.offsets[last])
        tile = product(image[images].flatten(0, 1), texts[span])
        tile = tile.view(-1, n1, last - first, order.lengths[first])
        if isinstance(residuals, Maps):
            of_images, index = tile.max(dim=3)
            residuals.image[images, :, first:last] = index
            of_texts, index = tile.max(dim=1)
            residuals.text[images, span] = index.flatten(1)
        else:
            of_images, of_texts = tile.amax(dim=3), tile.amax(dim=1)
        i2t[images, first:last] = of_images.mean(dim=1)
        t2i[images, first:last] = of_texts.mean(dim=2)
    back = torch.empty_like(order.texts)
    back[order.texts] = torch.arange(len(lengths), device=back.device)
    return (i2t[:, back], t2i[:, back]), residuals


def backward(
    tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool] = (True, True)
) -> Pair:
    """Return both inputs' gradients, in the accumulation dtype, from those of s^I and s^T [images, texts]."""
    image, text, lengths = tokens
    wide = accumulation_dtype(image.dtype)
    order = by_length(lengths, image.device)
    per_text = torch.tensor(order.lengths, device=image.device)
    weights = (
        grads[0].to(wide)[:, order.texts] / image.shape[1],
        grads[1].to(wide)[:, order.texts] / per_text,
    )
    add = _by_sums if image.device.type == "cpu" else _by_products
    grad_image, in_order = add(weights, image, text, Maps(*residuals), order, needs)
    if not needs[1]:
        return grad_image, in_order
    grad_text = torch.empty_like(in_order)
    grad_text[order.tokens] = in_order
    return grad_image, grad_text


def _by_sums(
    weights: Pair, image: Tensor, text: Tensor, maps: Maps, order: Order, needs: tuple[bool, bool]
) -> Pair:
    """Compute both gradients by adding the winners' rows; ``weights`` [images, texts] of both directions.

    Texts are in order of length, in the weights and in their gradient; ``text`` is in the caller's.
    """
    b, n1, d = image.shape
    wide, device = accumulation_dtype(image.dtype), image.device
    per_text = torch.tensor(order.lengths, device=device)
    text_of = torch.repeat_interleave(
        torch.arange(len(per_text), device=device), per_text, output_size=order.offsets[-1]
    )
    grad_image = torch.zeros(b if needs[0] else 0, n1, d, dtype=wide, device=device)
    grad_text = torch.zeros(len(text) if needs[1] else 0, d, dtype=wide, device=device)
    step = max(1, _ROWS // n1)
    for first, last in _text_blocks(order.offsets, _ROWS):
        span = slice(order.offsets[first], order.offsets[last])
        texts = text[order.tokens[span]].to(wide)
        starts = torch.tensor(order.offsets[first:last], device=device) - order.offsets[first]
        for low in range(0, b, step):
            images = slice(low, min(low + step, b))
            image_rows, text_rows, weight = _entries(
                maps.image[images, :, first:last] + starts,
                maps.text[images, span],
                weights[0][images, first:last],
                weights[1][images][:, text_of[span]],
            )
            block = image[images].flatten(0, 1).to(wide)
            if needs[0]:
                found = _segment_sums(image_rows, text_rows, weight, texts, len(block))
                grad_image[images].view(-1, d).add_(found)
            if needs[1]:
                grad_text[span].add_(_segment_sums(text_rows, image_rows, weight, block, len(texts)))
    return grad_image, grad_text


def _by_products(
    weights: Pair, image: Tensor, text: Tensor, maps: Maps, order: Order, needs: tuple[bool, bool]
) -> Pair:
    """Compute the result of :func:`_by_sums` by two products of dense tiles of weights in the tokens' dtype.

    So that 16 bits lose no small weight, each image's (and for the other gradient each text's) are scaled to at most
    2^14, where the sum of two is still below float16's end.
    """
    b, n1, d = image.shape
    wide, dtype = accumulation_dtype(image.dtype), image.dtype
    grad_image = image.new_zeros(b if needs[0] else 0, n1, d, dtype=wide)
    grad_text = text.new_zeros(len(text) if needs[1] else 0, d, dtype=wide)
    largest = torch.maximum(weights[0].abs(), weights[1].abs())
    tiny = torch.finfo(torch.float32).tiny
    scales = [(largest.amax(dim=side, keepdim=True) * 2**-14).clamp_min(tiny) for side in (1, 0)]
    scaled = [[(weight / scale).to(dtype) for weight in weights] for scale in scales]
    for images, first, last in tiles(b, n1, order.lengths, image.device):
        span, length = slice(order.offsets[first], order.offsets[last]), order.lengths[first]
        rows = image[images]
        shape = len(rows), n1, last - first, length
        to_text = maps.image[images, :, first:last, None].long()
        to_image = maps.text[images, span].view(shape[0], 1, *shape[2:]).long()
        for side in (0, 1):
            if not needs[side]:
                continue
            of_image, of_text = (weight[images, None, first:last, None] for weight in scaled[side])
            tile = image.new_zeros(shape)
            tile.scatter_(3, to_text, of_image.expand_as(to_text))
            tile.scatter_add_(1, to_image, of_text.expand_as(to_image))
            flat = tile.view(shape[0] * n1, -1)
            if side == 0:
                grad_image[images].view(-1, d).add_(product(flat, text[order.tokens[span]].T))
            else:
                grad_text[span].add_(product(flat.T, rows.flatten(0, 1).T))
    if needs[0]:
        grad_image *= scales[0][:, :, None]
    if needs[1]:
        per_text = torch.tensor(order.lengths, device=image.device)
        grad_text *= scales[1][0].repeat_interleave(per_text, output_size=len(text))[:, None]
    return grad_image, grad_text


def _entries(
    to_text: Tensor, to_image: Tensor, i2t_weight: Tensor, t2i_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the non-zeros of one block's gradient of the similarity: image row, text row and weight of each.

    ``to_text`` [images, n1, texts] and ``to_image`` [images, T] hold the winners' rows within the block (of
    the latter within the image); ``i2t_weight`` [images, texts], ``t2i_weight`` [images, T].
    """
    count, n1, m = to_text.shape
    image_rows = torch.arange(count * n1, device=to_text.device)
    text_rows = torch.arange(to_image.shape[1], device=to_text.device)
    return (
        torch.cat([image_rows.repeat_interleave(m), (to_image + image_rows[::n1, None]).flatten()]),
        torch.cat([to_text.flatten(), text_rows.repeat(count)]),
        torch.cat([i2t_weight[:, None].expand(count, n1, m).flatten(), t2i_weight.flatten()]),
    )


def _segment_sums(target: Tensor, source: Tensor, weights: Tensor, table: Tensor, targets: int) -> Tensor:
    """Return [targets, d]: row t is the sum of weights[e] * table[source[e]] over the entries e with target t."""
    # A flat sort of 16-bit integers is a radix sort in PyTorch on CPUs, three times as fast as one of 64-bit integers.
    keys = target.to(torch.int16 if targets <= torch.iinfo(torch.int16).max else torch.int64)
    keys, order = keys.sort(stable=True)
    bounds = torch.arange(targets, dtype=keys.dtype, device=keys.device)
    starts = torch.searchsorted(keys, bounds)
    return F.embedding_bag(source[order], table, starts, per_sample_weights=weights[order], mode="sum")


def by_length(lengths: list[int], device: torch.device) -> Order:
    """Return the order of texts of ``lengths`` tokens."""
    per_text = torch.tensor(lengths)
    ordered, texts = per_text.sort(stable=True)
    before = (per_text.cumsum(0) - per_text)[
        texts
    ]  # rows before each text in the caller's order, and in the new one
    after = ordered.cumsum(0) - ordered
    tokens = torch.repeat_interleave(before - after, ordered) + torch.arange(sum(lengths))
    in_order = ordered.tolist()
    return Order(texts.to(device), tokens.to(device), in_order, offsets_of(in_order))


def tiles(b: int, n1: int, lengths: list[int], device: torch.device) -> Iterator[tuple[slice, int, int]]:
    """Yield (images, first, last) of each tile: all texts first..last have one length, and the tile is bounded."""
    # Roughly square tiles: as many text tokens at most, then as many images as fit with them.
    limit, widest = (_TILE_CPU, 512) if device.type == "cpu" else (_TILE_ACCELERATOR, 1 << 13)
    start = 0
    for length, run in itertools.groupby(lengths):
        end = start + sum(1 for _ in run)
        most = max(1, min(widest, limit // n1) // length)
        for first in range(start, end, most):
            last = min(first + most, end)
            step = max(1, limit // (n1 * length * (last - first)))
            for low in range(0, b, step):
                yield slice(low, min(low + step, b)), first, last
        start = end


def _text_blocks(offsets: list[int], rows: int) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of runs of texts with at most ``rows`` rows together, or of one text that has more."""
    first = 0
    while first + 1 < len(offsets):
        last = max(first + 1, bisect.bisect_right(offsets, offsets[first] + rows) - 1)
        yield first, last
        first = last


def _index_dtype(size: int) -> torch.dtype:
    """Return the smallest integer type for indices below ``size``."""
    if size <= 256:
        return torch.uint8
    return torch.int16 if size <= 1 << 15 else torch.int32
