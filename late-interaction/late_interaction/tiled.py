"""Run pure PyTorch on any device and dtype: one tile of the similarity at a time, of which only winners are saved.

Forward. Both sides are put in order of length, so that a tile is a rectangle: images of equal length against texts of
equal length are one matrix product without padding, viewed as [images, n1, texts, n2], and both maxima are taken from
it before the next tile overwrites it. The two arg-max maps are saved, in the smallest integer type that fits.

Backward. The gradient of a tile has one entry for each (image token, text) and one for each (image, text token). It is
written as a dense tile of weights, whose products with the tokens of either side are the gradients: no atomic
additions, the same bits each time. Adding rows instead would take 2 seconds of a V100's memory for one of the 128 GPUs
of the paper's base model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from late_interaction import smooth_blocks
from late_interaction.lengths import Order, by_length, index_dtype, tiles
from late_interaction.packing import Pair, Residuals, Tokens, accumulation_dtype, product, scale_of_rows, scaled_by_item


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
    maps = [image.new_empty(shape, dtype=dtype) for shape, dtype in _form(tokens)] if save_for_backward else []
    for images, texts in tiles(images_by.lengths, texts_by.lengths, device):
        rows, span = images_by.rows_of(images), texts_by.rows_of(texts)
        tile = product(image[rows], text[span])
        tile = tile.view(images.stop - images.start, -1, texts.stop - texts.start, texts_by.lengths[texts.start])
        if maps:
            of_images, index = tile.max(dim=3)
            maps[0][rows, texts] = index.flatten(0, 1)
            of_texts, index = tile.max(dim=1)
            maps[1][images, span] = index.flatten(1)
        else:
            of_images, of_texts = tile.amax(dim=3), tile.amax(dim=1)
        i2t[images, texts] = of_images.sum(dim=1) / tile.shape[1]
        t2i[images, texts] = of_texts.mean(dim=2)
    back = texts_by.back
    if tokens.image_lengths is not None:
        i2t, t2i = i2t[images_by.back], t2i[images_by.back]
    return (i2t[:, back], t2i[:, back]), tuple(maps)


def _form(tokens: Tokens) -> list[tuple[tuple[int, int], torch.dtype]]:
    """Return shape and dtype of both maps: each token's winner in each item of the other side, in order of length."""
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


def backward(tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool] = (True, True)) -> Pair:
    """Return both inputs' gradients, in the accumulation dtype, from the gradients of s^I and s^T [images, texts]."""
    if tokens.temperature:
        return smooth_blocks.backward(tokens, grads, needs)
    image, text, device = tokens.image, tokens.text, tokens.image.device
    maps = [item.view(dtype).view(shape) for item, (shape, dtype) in zip(residuals, _form(tokens), strict=True)]
    wide = accumulation_dtype(image.dtype)
    images_by, texts_by = _orders(tokens)
    per_image, per_text = (torch.tensor(order.lengths, device=device) for order in (images_by, texts_by))
    of_i2t, of_t2i = (_in_order(grad.to(wide), tokens, images_by)[:, texts_by.items] for grad in grads)
    weights = of_i2t / per_image[:, None], of_t2i / per_text
    # So that 16 bits lose no small weight, each image's (and for the other gradient each text's) are scaled.
    by_item = [scaled_by_item(weights, dim) for dim in (1, 0)]
    scaled = [[weight.to(dtype_of_weights(image)) for weight in pair] for pair, _ in by_item]
    rows_of_images, rows_of_texts = _in_order(image.flatten(0, -2), tokens, images_by), text[texts_by.rows]
    found = [
        torch.zeros(len(side) if need else 0, side.shape[1], dtype=wide, device=device)
        for side, need in zip((rows_of_images, text), needs, strict=True)
    ]
    for images, texts in tiles(images_by.lengths, texts_by.lengths, device):
        rows, span = images_by.rows_of(images), texts_by.rows_of(texts)
        shape = images.stop - images.start, images_by.lengths[images.start], texts.stop - texts.start, -1
        to_text = maps[0][rows, texts].long().view(*shape[:3], 1)
        to_image = maps[1][images, span].long().view(shape[0], 1, shape[2], -1)
        for side in (0, 1):
            if not needs[side]:
                continue
            of_image, of_text = (weight[images, None, texts, None] for weight in scaled[side])
            tile = of_image.new_zeros(*shape[:3], texts_by.lengths[texts.start])
            tile.scatter_(3, to_text, of_image.expand_as(to_text))
            tile.scatter_add_(1, to_image, of_text.expand_as(to_image))
            flat = tile.view(shape[0] * shape[1], -1)
            if side == 0:
                found[0][rows].add_(product(flat, rows_of_texts[span].T))
            else:
                found[1][span].add_(product(flat.T, rows_of_images[rows].T))
    for needed, gradient, (_, scale), order in zip(needs, found, by_item, (images_by, texts_by), strict=True):
        if needed:
            gradient *= scale_of_rows(scale, torch.tensor(order.lengths, device=device), len(gradient))
    of_images, of_texts = found
    return (
        of_images.view(image.shape if needs[0] else (0,))
        if tokens.image_lengths is None
        else _put_back(of_images, images_by, needs[0]),
        _put_back(of_texts, texts_by, needs[1]),
    )


def dtype_of_weights(tokens: Tensor) -> torch.dtype:
    """Return the dtype in which a tile's weights are multiplied: the tokens' own where tensor cores take it."""
    return accumulation_dtype(tokens.dtype) if tokens.device.type == "cpu" else tokens.dtype


def _put_back(in_order: Tensor, order: Order, needed: bool) -> Tensor:
    if not needed:
        return in_order
    restored = torch.empty_like(in_order)
    restored[order.rows] = in_order
    return restored
