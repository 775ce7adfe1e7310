"""Compute similarities other than the maximum, in blocks: each is a backend made from one plain function.

The function sees a block of images and of texts that are equally long, so it needs no mask, and returns s^I and s^T
of the block. The forward keeps nothing else. The backward computes each block again and lets PyTorch differentiate it.
So the memory is that of one block whatever the batch, and everything that takes a backend takes these: ``gather`` and
``ring`` on many ranks, 16-bit tokens on the wire, gradient caching.

    similarity = late_interaction(image_tokens, text_tokens, text_lengths, backend=Blockwise(smooth_maximum(0.05)))
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from filip.interaction.packing import Pair, Residuals, Tokens, accumulation_dtype
from filip.interaction.tiled import by_length, tiles

# [images, n1, d] and [texts, n2, d] to s^I and s^T, each [images, texts]
Score = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Blockwise:
    """A backend (see :mod:`filip.interaction.backends`) that computes ``score`` of every block.

    ``width``: the numbers that ``score`` holds for an image and a text token, where they are more than the image's
    tokens; blocks are correspondingly smaller.
    """

    def __init__(self, score: Score, width: int = 1) -> None:
        self.score, self.width = score, width

    def forward(self, tokens: Tokens, save_for_backward: bool = True) -> tuple[Pair, Residuals]:
        """Return s^I and s^T [images, texts]."""
        image, text, lengths = tokens
        wide = accumulation_dtype(image.dtype)
        i2t = image.new_empty(len(image), len(lengths), dtype=wide)
        t2i = torch.empty_like(i2t)
        with torch.no_grad():
            for images, texts, rows in self._blocks(tokens):
                i2t[images, texts], t2i[images, texts] = self.score(
                    image[images].to(wide), text[rows].to(wide)
                )
        return (i2t, t2i), ()

    def backward(
        self, tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool] = (True, True)
    ) -> Pair:
        """Return the gradients of both inputs in the accumulation dtype."""
        image, text, _ = tokens
        wide = accumulation_dtype(image.dtype)
        found = [
            torch.zeros_like(side, dtype=wide) if need else side.new_empty(0, dtype=wide)
            for side, need in zip((image, text), needs, strict=True)
        ]
        for images, texts, rows in self._blocks(tokens):
            with torch.enable_grad():
                block = [image[images].detach().to(wide), text[rows].detach().to(wide)]
                inputs = [part.requires_grad_() for part, need in zip(block, needs, strict=True) if need]
                scores = self.score(*block)
            upstream = [grad[images, texts].to(wide) for grad in grads]
            gradients = iter(torch.autograd.grad(scores, inputs, upstream) if inputs else ())
            if needs[0]:
                found[0][images] += next(gradients)
            if needs[1]:
                found[1].index_add_(0, rows.flatten(), next(gradients).flatten(0, 1))
        return found[0], found[1]

    def _blocks(self, tokens: Tokens) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield (images, texts, rows) of each block: indices of the texts [t], and of their packed tokens [t, n2]."""
        (b, n1, _), device = tokens.image.shape, tokens.image.device
        order = by_length(tokens.lengths, device)
        for images, first, last in tiles(b, max(n1, self.width), order.lengths, device):
            rows = order.tokens[order.offsets[first] : order.offsets[last]]
            yield images, order.texts[first:last], rows.view(last - first, -1)


def smooth_maximum(temperature: float) -> Score:
    """Make a softened maximum over the n tokens of the other side.

    ``temperature * log(mean(exp(s / temperature)))`` lies between the mean (a high temperature) and the maximum
    (towards 0), so that every token gets a gradient. The mean instead of the sum inside the logarithm keeps a long
    caption from scoring log(n) * temperature higher.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive, got {temperature}")

    def maximum(similarity: Tensor, dim: int) -> Tensor:
        total = torch.logsumexp(similarity / temperature, dim=dim)
        return temperature * (total - math.log(similarity.shape[dim]))

    return functools.partial(_token_wise, maximum)


def top_k_mean(k: int) -> Score:
    """Make the mean of the ``k`` largest similarities, to replace the largest; of all, if there are fewer."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")

    def maximum(similarity: Tensor, dim: int) -> Tensor:
        return similarity.topk(min(k, similarity.shape[dim]), dim=dim).values.mean(dim=dim)

    return functools.partial(_token_wise, maximum)


def _token_wise(
    maximum: Callable[[Tensor, int], Tensor], images: Tensor, texts: Tensor
) -> tuple[Tensor, Tensor]:
    similarity = images.flatten(0, 1) @ texts.flatten(0, 1).T
    similarity = similarity.view(len(images), images.shape[1], len(texts), texts.shape[1])
    return maximum(similarity, 3).mean(dim=1), maximum(similarity, 1).mean(dim=2)
