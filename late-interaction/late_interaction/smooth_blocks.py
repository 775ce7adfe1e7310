"""Compute the smooth maximum in blocks of equally long images and equally long texts, which need no mask.

The forward keeps nothing but the similarities. The backward computes each block again: the memory is that of one block
whatever the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from late_interaction.lengths import by_length, tiles
from late_interaction.packing import Pair, Residuals, Tokens, accumulation_dtype


def forward(tokens: Tokens) -> tuple[Pair, Residuals]:
    """Return s^I and s^T [images, texts] by ``temperature * log(mean(exp(s / temperature)))``."""
    image, text = tokens.image.flatten(0, -2), tokens.text
    wide, temperature = accumulation_dtype(image.dtype), tokens.temperature
    i2t = image.new_empty(tokens.shape, dtype=wide)
    t2i = torch.empty_like(i2t)

    def maximum(similarity: Tensor, dim: int) -> Tensor:
        # The mean, not the sum, in the logarithm keeps a long caption from scoring temperature * log(n) higher.
        total = torch.logsumexp(similarity / temperature, dim=dim)
        return temperature * (total - math.log(similarity.shape[dim]))

    with torch.no_grad():
        for (items, rows), (text_items, text_rows) in _blocks(tokens):
            block = items[:, None], text_items
            images, texts = image[rows].to(wide), text[text_rows].to(wide)
            similarity = images.flatten(0, 1) @ texts.flatten(0, 1).T
            similarity = similarity.view(*images.shape[:2], *texts.shape[:2])
            i2t[block], t2i[block] = maximum(similarity, 3).mean(dim=1), maximum(similarity, 1).mean(dim=2)
    return (i2t, t2i), ()


def backward(tokens: Tokens, grads: Pair, needs: tuple[bool, bool] = (True, True)) -> Pair:
    """Return the gradients of both inputs in the accumulation dtype."""
    sides = tokens.image.flatten(0, -2), tokens.text
    wide = accumulation_dtype(tokens.image.dtype)
    gradients = [
        torch.zeros_like(side, dtype=wide) if need else side.new_empty(0, dtype=wide)
        for side, need in zip(sides, needs, strict=True)
    ]
    for (items, rows), (text_items, text_rows) in _blocks(tokens):
        parts = [side[of].detach().to(wide) for side, of in zip(sides, (rows, text_rows), strict=True)]
        image, text = (part.flatten(0, 1) for part in parts)
        powers = (image @ text.T / tokens.temperature).view(*parts[0].shape[:2], *parts[1].shape[:2])
        of_i2t, of_t2i = (
            grad[items[:, None], text_items].to(wide)[:, None, :, None] / powers.shape[n]
            for grad, n in zip(grads, (1, 3), strict=True)
        )
        weights = (of_i2t * powers.softmax(dim=3) + of_t2i * powers.softmax(dim=1)).view(len(image), len(text))
        products = (weights @ text, weights.T @ image)
        for gradient, of, need, product in zip(gradients, (rows, text_rows), needs, products, strict=True):
            if need:
                gradient.index_add_(0, of.flatten(), product)
    return gradients[0].view(tokens.image.shape if needs[0] else (0,)), gradients[1]


def _blocks(tokens: Tokens) -> Iterator[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """Yield the images and the texts of each block: those of a side are equally long."""
    of_images, of_texts = (by_length(lengths, tokens.image.device) for lengths in (tokens.patches, tokens.lengths))
    for images, texts in tiles(of_images.lengths, of_texts.lengths, tokens.image.device):
        yield of_images.block(images), of_texts.block(texts)
