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
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.interaction.packing import accumulation_dtype, offsets_of, product

# Elements of one tile of the similarity. A CPU wants it in its second-level cache, a GPU wants few launches.
_TILE_CPU, _TILE_ACCELERATOR = 1 << 18, 1 << 26
# Rows of either side in one block of the backward: 1,024 rows of 256 floats are a megabyte.
_ROWS_CPU, _ROWS_ACCELERATOR = 1 << 10, 1 << 15


class Residuals(NamedTuple):
    """What the forward leaves for the backward. Texts are in order of length, not in the caller's."""

    image_argmax: Tensor  # [images, n1, texts]: the winning token within the text
    text_argmax: Tensor  # [images, T]: the winning token of the image, for each text token


class _Order(NamedTuple):
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
    order = _by_length(lengths, image_tokens.device)
    texts = text_tokens[order.tokens]
    i2t = image_tokens.new_empty(b, len(lengths), dtype=wide)
    t2i = torch.empty_like(i2t)
    residuals: tuple[Tensor, ...] = ()
    if save_for_backward:
        residuals = Residuals(
            image_tokens.new_empty(b, n1, len(lengths), dtype=_index_dtype(order.lengths[-1])),
            image_tokens.new_empty(b, order.offsets[-1], dtype=_index_dtype(n1)),
        )
    for images, first, last in _tiles(b, n1, order.lengths, image_tokens.device):
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
) -> tuple[Tensor, Tensor]:
    """Gradients of both inputs, in the accumulation dtype, from those of s^I and s^T [images, texts]."""
    b, n1, d = image_tokens.shape
    wide = accumulation_dtype(image_tokens.dtype)
    device = image_tokens.device
    image_argmax, text_argmax = Residuals(*residuals)
    order = _by_length(lengths, device)
    per_text = torch.tensor(order.lengths, device=device)
    text_of = torch.repeat_interleave(torch.arange(len(lengths), device=device), per_text)
    i2t_weight = grad_i2t.to(wide)[:, order.texts] / n1  # [images, texts]
    t2i_weight = grad_t2i.to(wide)[:, order.texts] / per_text
    grad_images = torch.zeros(b, n1, d, dtype=wide, device=device)
    grad_texts = torch.zeros(order.offsets[-1], d, dtype=wide, device=device)
    rows = _ROWS_CPU if device.type == "cpu" else _ROWS_ACCELERATOR
    step = max(1, rows // n1)
    for first, last in _text_blocks(order.lengths, rows):
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
            grad_images[images].view(-1, d).add_(_segment_sums(*entries, texts, len(block)))
            image_rows, text_rows, weights = entries
            grad_texts[span].add_(_segment_sums(text_rows, image_rows, weights, block, len(texts)))
    ordered = torch.empty_like(grad_texts)
    ordered[order.tokens] = grad_texts
    return grad_images, ordered


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


def _by_length(lengths: list[int], device: torch.device) -> _Order:
    texts = sorted(range(len(lengths)), key=lengths.__getitem__)
    offsets, ordered = offsets_of(lengths), [lengths[j] for j in texts]
    tokens = [row for j in texts for row in range(offsets[j], offsets[j + 1])]
    return _Order(
        torch.tensor(texts, device=device),
        torch.tensor(tokens, device=device),
        ordered,
        offsets_of(ordered),
    )


def _tiles(b: int, n1: int, lengths: list[int], device: torch.device) -> Iterator[tuple[slice, int, int]]:
    """(images, first, last) of each tile: all texts first..last have one length, and the tile is bounded."""
    limit = _TILE_CPU if device.type == "cpu" else _TILE_ACCELERATOR
    first = 0
    while first < len(lengths):
        # Roughly square tiles: about 512 text tokens at most, then as many images as fit beside them.
        most = max(1, min(512, limit // n1) // lengths[first])
        last = first + 1
        while last < len(lengths) and lengths[last] == lengths[first] and last - first < most:
            last += 1
        step = max(1, limit // (n1 * lengths[first] * (last - first)))
        for low in range(0, b, step):
            yield slice(low, min(low + step, b)), first, last
        first = last


def _text_blocks(lengths: list[int], rows: int) -> Iterator[tuple[int, int]]:
    first = total = 0
    for j, length in enumerate(lengths):
        if total and total + length > rows:
            yield first, j
            first, total = j, 0
        total += length
    yield first, len(lengths)


def _index_dtype(size: int) -> torch.dtype:
    """The smallest integer type for indices below ``size``."""
    if size <= 256:
        return torch.uint8
    return torch.int16 if size <= 1 << 15 else torch.int32
