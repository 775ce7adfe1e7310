"""Compute similarities other than the maximum, in blocks: each is a backend made from one plain function.

The function sees a block of equally long images and of equally long texts, so it needs no mask, and returns s^I and
s^T of the block. The forward keeps nothing else. The backward computes each block again and lets PyTorch differentiate
it. So the memory is that of one block whatever the batch, and what takes a backend takes
these: ``gather`` and ``ring`` on many ranks, 16-bit tokens on the wire, gradient caching.

    similarity = late_interaction(image_tokens, text_tokens, text_lengths, backend=Blockwise(smooth_maximum(0.05)))
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from late_interaction.lengths import by_length, tiles
from late_interaction.packing import Pair, Residuals, Tokens, accumulation_dtype

# [images, n1, d] and [texts, n2, d] to s^I and s^T, each [images, texts]
Score = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Blockwise:
    """A backend (see :mod:`late_interaction.backends`) that computes ``score`` of every block.

    ``width``: the numbers that ``score`` holds for an image and a text token, where they are more than the image's
    tokens; blocks are correspondingly smaller.
    """

    def __init__(self, score: Score, width: int = 1) -> None:
        self.score, self.width = score, width

    def forward(self, tokens: Tokens, save_for_backward: bool = True) -> tuple[Pair, Residuals]:
        """Return s^I and s^T [images, texts]."""
        image, text = tokens.image.flatten(0, -2), tokens.text
        wide = accumulation_dtype(image.dtype)
        i2t = image.new_empty(tokens.shape, dtype=wide)
        t2i = torch.empty_like(i2t)
        with torch.no_grad():
            for of_images, of_texts in self._blocks(tokens):
                block = of_images.items[:, None], of_texts.items
                i2t[block], t2i[block] = self.score(image[of_images.rows].to(wide), text[of_texts.rows].to(wide))
        return (i2t, t2i), ()

    def backward(
        self, tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool] = (True, True)
    ) -> Pair:
        """Return the gradients of both inputs in the accumulation dtype."""
        sides = tokens.image.flatten(0, -2), tokens.text
        wide = accumulation_dtype(tokens.image.dtype)
        gradients = [
            torch.zeros_like(side, dtype=wide) if need else side.new_empty(0, dtype=wide)
            for side, need in zip(sides, needs, strict=True)
        ]
        for blocks in self._blocks(tokens):
            parts = [side[block.rows].detach().to(wide) for side, block in zip(sides, blocks, strict=True)]
            upstream = [grad[blocks[0].items[:, None], blocks[1].items].to(wide) for grad in grads]
            for side, gradient in enumerate(self._gradients(parts, upstream, needs)):
                if gradient is not None:
                    gradients[side].index_add_(0, blocks[side].rows.flatten(), gradient.flatten(0, 1))
        return gradients[0].view(tokens.image.shape if needs[0] else (0,)), gradients[1]

    def _gradients(
        self, parts: list[Tensor], upstream: list[Tensor], needs: tuple[bool, bool]
    ) -> Iterator[Tensor | None]:
        with torch.enable_grad():
            inputs = [part.requires_grad_() for part, need in zip(parts, needs, strict=True) if need]
            scores = self.score(*parts)
        gradients = iter(torch.autograd.grad(scores, inputs, upstream) if inputs else ())
        return (next(gradients) if need else None for need in needs)

    def _blocks(self, tokens: Tokens) -> Iterator[tuple[_Block, _Block]]:
        """Yield the images and the texts of each block: those of a side are equally long."""
        device = tokens.image.device
        orders = [by_length(lengths, device) for lengths in (tokens.patches, tokens.lengths)]
        for block in tiles(orders[0].lengths, orders[1].lengths, device, waste=0, width=self.width):
            sides = []
            for order, items in zip(orders, block, strict=True):
                rows = order.rows[order.offsets[items.start] : order.offsets[items.stop]]
                sides.append(_Block(order.items[items], rows.view(items.stop - items.start, -1)))
            yield sides[0], sides[1]


class SmoothBlocks(Blockwise):
    """The smooth maximum with its gradient written out, since an operator's own operations are not differentiated."""

    def __init__(self, temperature: float) -> None:
        super().__init__(smooth_maximum(temperature))
        self.temperature = temperature

    def _gradients(
        self, parts: list[Tensor], upstream: list[Tensor], needs: tuple[bool, bool]
    ) -> Iterator[Tensor | None]:
        image, text = (part.flatten(0, 1) for part in parts)
        powers = (image @ text.T / self.temperature).view(*parts[0].shape[:2], *parts[1].shape[:2])
        of_i2t, of_t2i = (grad[:, None, :, None] / powers.shape[n] for grad, n in zip(upstream, (1, 3), strict=True))
        weights = (of_i2t * powers.softmax(dim=3) + of_t2i * powers.softmax(dim=1)).view(len(image), len(text))
        for part, need, gradient in zip(parts, needs, (weights @ text, weights.T @ image), strict=True):
            yield gradient.view(part.shape) if need else None


class _Block(NamedTuple):
    items: Tensor  # [items] indices
    rows: Tensor  # [items, tokens] of each among the packed tokens


def smooth_maximum(temperature: float) -> Score:
    """Make a softened maximum over the n tokens of the other side.

    ``temperature * log(mean(exp(s / temperature)))`` is between the mean (a high temperature) and the maximum
    (towards 0), so that every token gets a gradient. The mean instead of the sum inside the logarithm keeps a long
    caption from scoring log(n) * temperature higher.
    """
    _check_temperature(temperature)

    def maximum(similarity: Tensor, dim: int) -> Tensor:
        total = torch.logsumexp(similarity / temperature, dim=dim)
        return temperature * (total - math.log(similarity.shape[dim]))

    return functools.partial(_token_wise, maximum)


def log_sum_exp(temperature: float) -> Score:
    """Make ``temperature * log(sum(exp(s / temperature)))``: the smooth maximum plus ``temperature * log(n)``.

    Between the maximum and ``temperature * log(n)`` above it, so that a long text scores higher. colpali-engine's
    losses have it as ``use_smooth_max``.
    """
    _check_temperature(temperature)

    def maximum(similarity: Tensor, dim: int) -> Tensor:
        return temperature * torch.logsumexp(similarity / temperature, dim=dim)

    return functools.partial(_token_wise, maximum)


def top_k_mean(k: int) -> Score:
    """Make the mean of the ``k`` largest similarities, or of all if there are fewer, to replace the largest."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")

    def maximum(similarity: Tensor, dim: int) -> Tensor:
        return similarity.topk(min(k, similarity.shape[dim]), dim=dim).values.mean(dim=dim)

    return functools.partial(_token_wise, maximum)


def softmax_mean(temperature: float) -> Score:
    """Make the mean of the similarities weighted by their softmax, ``sum_r softmax(s / temperature)_r s_r``.

    Like the smooth maximum it is between the mean and the maximum, but it falls where a similarity that is small
    enough rises. Suresh et al., "Spike Hijacking in Late-Interaction Retrieval" (2026), compare it with the maximum.
    """
    _check_temperature(temperature)

    def maximum(similarity: Tensor, dim: int) -> Tensor:
        return (torch.softmax(similarity / temperature, dim=dim) * similarity).sum(dim=dim)

    return functools.partial(_token_wise, maximum)


def _check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive, got {temperature}")


def _token_wise(maximum: Callable[[Tensor, int], Tensor], images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    similarity = images.flatten(0, 1) @ texts.flatten(0, 1).T
    similarity = similarity.view(len(images), images.shape[1], len(texts), texts.shape[1])
    return maximum(similarity, 3).mean(dim=1), maximum(similarity, 1).mean(dim=2)
