"""Pure PyTorch on any device and dtype: one tile of the similarity at a time, of which only the winners are saved.

Forward. Texts are put in order of length, so that texts of equal length form a rectangle: a block of images
against such a run of texts is one matrix product without padding, viewed as [images, n1, texts, n2], and
both maxima are taken from it before the next tile overwrites it. What is saved are the two arg-max maps, in the
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

from filip.interaction.packing import accumulation_dtype, offsets_of, product

# Elements of one tile of the similarity. A CPU wants it in its second-level cache, a GPU wants few launches.
_TILE_CPU, _TILE_ACCELERATOR = 1 << 18, 1 << 26
# Rows of either side in one block of the backward on a CPU: 1,024 rows of 256 floats are a megabyte.
_ROWS = 1 << 10


class Residuals(NamedTuple):
    """What the forward leaves for the backward. Texts are in order of length, not in the caller's."""

    image_argmax: Tensor  # [images, n1, texts]: the winning token within the text
    text_argmax: Tensor  # [images, T]: the winning token of the image, for each text token


class Order(NamedTuple):
    """Texts by length, so that equally long ones form a rectangle."""

    texts: Tensor  # [texts] the caller's index of the texts, shortest first
    tokens: Tensor  # [T] the caller's row of each packed token in that order
    lengths: list[int]  # ascending
    offsets: list[int]


def forward(
    image_tokens: Tensor, text_tokens: Tensor, lengths: list[int], save_for_backward: bool = True
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """s^I and s^T [images, texts] and the arg-max maps; ``image_tokens`` [b, n1, d], ``text_tokens`` [T, d].

    Without ``save_for_backward`` there are no maps, and the forward takes half the time: PyTorch's maximum is fast,
    its maximum with the index is not.
    """
    b, n1, _ = image_tokens.shape
    wide = accumulation_dtype(image_tokens.dtype)
    order = by_length(lengths, image_tokens.device)
    texts = text_tokens[order.tokens]
    i2t = image_tokens.new_empty(b, len(lengths), dtype=wide)
    t2i = torch.empty_like(i2t)
    residuals: tuple[Tensor, ...] = ()
    if save_for_backward:
        residuals = Residuals(
            image_tokens.new_empty(b, n1, len(lengths), dtype=_index_dtype(order.lengths[-1])),
            image_tokens.new_empty(b, order.offsets[-1], dtype=_index_dtype(n1)),
        )
    for images, first, last in tiles(b, n1, order.lengths, image_tokens.device):
        span = slice(order.offsets[first], order.offsets[last])
        tile = product(image_tokens[images].flatten(0, 1), texts[span])
        tile = tile.view(-1, n1, last - first, order.lengths[first])
        if isinstance(residuals, Residuals):
            of_images, index = tile.max(dim=3)
            residuals.image_argmax[images, :, first:last] = index
            of_texts, index = tile.max(dim=1)
            residuals.text_argmax[images, span] = index.flatten(1)
        else:
            of_images, of_texts = tile.amax(dim=3), tile.amax(dim=1)
        i2t[images, first:last] = of_images.mean(dim=1)
        t2i[images, first:last] = of_texts.mean(dim=2)
    back = torch.empty_like(order.texts)
    back[order.texts] = torch.arange(len(lengths), device=back.device)
    return i2t[:, back], t2i[:, back], residuals


def backward(
    grad_i2t: Tensor,
    grad_t2i: Tensor,
    image_tokens: Tensor,
    text_tokens: Tensor,
    lengths: list[int],
    residuals: tuple[Tensor, ...],
    needs: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, Tensor]:
    """Gradients of both inputs, in the accumulation dtype, from those of s^I and s^T [images, texts]."""
    b, n1, d = image_tokens.shape
    wide = accumulation_dtype(image_tokens.dtype)
    device = image_tokens.device
    image_argmax, text_argmax = Residuals(*residuals)
    order = by_length(lengths, device)
    per_text = torch.tensor(order.lengths, device=device)
    text_of = torch.repeat_interleave(
        torch.arange(len(lengths), device=device), per_text, output_size=order.offsets[-1]
    )
    i2t_weight = grad_i2t.to(wide)[:, order.texts] / n1  # [images, texts]
    t2i_weight = grad_t2i.to(wide)[:, order.texts] / per_text
    if device.type != "cpu":
        maps = Residuals(*residuals)
        return _by_products((i2t_weight, t2i_weight), image_tokens, text_tokens, maps, order, needs)
    grad_images = torch.zeros(b if needs[0] else 0, n1, d, dtype=wide, device=device)
    grad_texts = torch.zeros(order.offsets[-1] if needs[1] else 0, d, dtype=wide, device=device)
    rows = _ROWS
    step = max(1, rows // n1)
    for first, last in _text_blocks(order.offsets, rows):
        span = slice(order.offsets[first], order.offsets[last])
        texts = text_tokens[order.tokens[span]].to(wide)
        starts = torch.tensor(order.offsets[first:last], device=device) - order.offsets[first]
        for low in range(0, b, step):
            images = slice(low, min(low + step, b))
            entries = _entries(
                image_argmax[images, :, first:last] + starts,
                text_argmax[images, span],
                i2t_weight[images, first:last],
                t2i_weight[images][:, text_of[span]],
            )
            block = image_tokens[images].flatten(0, 1).to(wide)
            image_rows, text_rows, weights = entries
            if needs[0]:
                grad_images[images].view(-1, d).add_(_segment_sums(*entries, texts, len(block)))
            if needs[1]:
                grad_texts[span].add_(_segment_sums(text_rows, image_rows, weights, block, len(texts)))
    return grad_images, _in_callers_order(grad_texts, order)


def _by_products(
    weights: tuple[Tensor, Tensor],
    image_tokens: Tensor,
    text_tokens: Tensor,
    maps: Residuals,
    order: Order,
    needs: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """The gradients by two products of dense tiles; ``weights`` of both directions [images, texts], texts in order.

    Tiles have the dtype of the tokens. So that 16 bits lose no small weight, each image's (and for the other gradient
    each text's) are scaled to at most 2^14, where the sum of two is still below float16's end.
    """
    b, n1, d = image_tokens.shape
    wide, dtype = accumulation_dtype(image_tokens.dtype), image_tokens.dtype
    grad_images = image_tokens.new_zeros(b if needs[0] else 0, n1, d, dtype=wide)
    grad_texts = text_tokens.new_zeros(order.offsets[-1] if needs[1] else 0, d, dtype=wide)
    largest = torch.maximum(weights[0].abs(), weights[1].abs())
    for side in (0, 1):
        if not needs[side]:
            continue
        scale = (largest.amax(dim=1 - side, keepdim=True) * 2**-14).clamp_min(torch.finfo(torch.float32).tiny)
        of_images, of_texts = ((weight / scale).to(dtype) for weight in weights)
        for images, first, last in tiles(b, n1, order.lengths, image_tokens.device):
            span, length = slice(order.offsets[first], order.offsets[last]), order.lengths[first]
            image = image_tokens[images]
            tile = image.new_zeros(len(image), n1, last - first, length)
            winners = maps.image_argmax[images, :, first:last, None].long()
            tile.scatter_(3, winners, of_images[images, None, first:last, None].expand_as(winners))
            winners = maps.text_argmax[images, span].view(len(image), 1, last - first, length).long()
            tile.scatter_add_(1, winners, of_texts[images, None, first:last, None].expand_as(winners))
            flat = tile.view(len(image) * n1, -1)
            if side == 0:
                grad_images[images].view(-1, d).add_(product(flat, text_tokens[order.tokens[span]].T))
            else:
                grad_texts[span].add_(product(flat.T, image.flatten(0, 1).T))
        if side == 0:
            grad_images *= scale[:, :, None]
        else:
            per_text = torch.tensor(order.lengths, device=scale.device)
            grad_texts *= scale[0].repeat_interleave(per_text, output_size=order.offsets[-1])[:, None]
    return grad_images, _in_callers_order(grad_texts, order)


def _in_callers_order(grad_texts: Tensor, order: Order) -> Tensor:
    if not len(grad_texts):
        return grad_texts
    found = torch.empty_like(grad_texts)
    found[order.tokens] = grad_texts
    return found


def _entries(
    to_text: Tensor, to_image: Tensor, i2t_weight: Tensor, t2i_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The non-zeros of one block's gradient of the similarity: image row, text row and weight of each.

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
    """[targets, d]: row t is the sum of weights[e] * table[source[e]] over the entries e with target t."""
    # A flat sort of 16-bit integers is a radix sort in PyTorch on CPUs, three times as fast as of 64-bit ones.
    keys = target.to(torch.int16 if targets <= torch.iinfo(torch.int16).max else torch.int64)
    keys, order = keys.sort(stable=True)
    bounds = torch.arange(targets, dtype=keys.dtype, device=keys.device)
    starts = torch.searchsorted(keys, bounds)
    return F.embedding_bag(source[order], table, starts, per_sample_weights=weights[order], mode="sum")


def by_length(lengths: list[int], device: torch.device) -> Order:
    """The order of texts of ``lengths`` tokens."""
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
    """(images, first, last) of each tile: all texts first..last have one length, and the tile is bounded."""
    # Roughly square tiles: as many text tokens at most, then as many images as fit beside them.
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
    """(first, last) of runs of texts with at most ``rows`` rows together, or of one text that has more."""
    first = 0
    while first + 1 < len(offsets):
        last = max(first + 1, bisect.bisect_right(offsets, offsets[first] + rows) - 1)
        yield first, last
        first = last


def _index_dtype(size: int) -> torch.dtype:
    """The smallest integer type for indices below ``size``."""
    if size <= 256:
        return torch.uint8
    return torch.int16 if size <= 1 << 15 else torch.int32
