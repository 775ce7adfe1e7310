"""Compute similarities of chosen pairs, not of all: a query's own documents, given negatives, hits of a first search.

The native kernels take a list of pairs; other backends, and the smooth maximum, those of one image or text at a time.
Kept for the gradient are the winners, n1 + n2 small integers a pair.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from late_interaction.backends import Backend, SmoothMaximum, choose_backend, softness
from late_interaction.differentiation import first_derivative_only, refuse_transforms
from late_interaction.lengths import Lengths
from late_interaction.operator import as_input_gradients, wants_gradient
from late_interaction.packing import (
    Pair,
    Residuals,
    Similarity,
    Tokens,
    accumulation_dtype,
    check_mask,
    check_tokens,
    text_mask,
)


def late_interaction_pairs(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    images: Tensor,
    texts: Tensor,
    *,
    image_mask: Tensor | None = None,
    backend: str | Backend = "auto",
    maximum: SmoothMaximum | None = None,
) -> Similarity:
    """Compute :func:`late_interaction` of image ``images[p]`` with text ``texts[p]`` for every place p.

    It is differentiable. ``images`` and ``texts`` are int64 indices of one shape, which both results have too:

        aligned pairs                images = texts = torch.arange(b)
        k candidates of each image   images = torch.arange(b)[:, None].expand(-1, k), texts [b, k]
        k candidates of each text    texts = torch.arange(t)[:, None].expand(-1, k), images [t, k]

    The other arguments and the errors are late_interaction's; padded tokens are read where they are, not copied. Only
    these pairs are multiplied. If most pairs are wanted, late_interaction is faster.
    """
    refuse_transforms("late_interaction_pairs", image_tokens, text_tokens)
    padded = text_tokens.dim() == 3
    if image_mask is not None:
        check_mask(image_tokens, image_mask)
    mask = text_mask(text_tokens, text_lengths) if padded else None
    rows = text_tokens.flatten(0, 1) if padded else text_tokens
    check_tokens(image_tokens, rows, torch.tensor([len(rows)]) if padded else text_lengths)
    _check_indices(len(image_tokens), len(text_lengths), images, texts)
    image, image_rows = _rows_of(image_tokens, image_mask)
    text, text_rows = _rows_of(text_tokens, mask) if padded else (rows, _bounds_of(text_lengths.cpu()))
    dtype, needed = torch.promote_types(image.dtype, text.dtype), wants_gradient(image, text)
    pairs = images.flatten().cpu(), texts.flatten().cpu()
    n1, n2 = (rows.diff()[of, 0] for rows, of in zip((image_rows, text_rows), pairs, strict=True))
    longest = max(int(n1.max()), int(n2.max()))
    module = choose_backend(image[:0].to(dtype), longest, backend, None if needed else int(n1 @ n2) * image.shape[1])
    chosen = Chosen(dtype, image_rows, text_rows, *pairs, n1, n2, longest, needed, softness(maximum)[0])
    i2t, t2i = _Pairs.apply(image, text, chosen, module)
    return Similarity(i2t.view(images.shape), t2i.view(images.shape))


def _rows_of(padded: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return tokens [rows, d] of ``padded`` [items, n, d], and their bounds; those of a mask with holes are copied."""
    items, longest = padded.shape[:2]
    start = torch.arange(items) * longest
    if mask is None:
        return padded.flatten(0, 1), torch.stack([start, start + longest], 1)
    of_items = mask.cpu().to(torch.uint8)
    counts = of_items.sum(dim=1)
    first, last = of_items.argmax(dim=1), longest - of_items.flip(1).argmax(dim=1)
    if torch.equal(last - first, counts):
        return padded.flatten(0, 1), torch.stack([start + first, start + last], 1)
    return padded[mask], _bounds_of(counts)


def _bounds_of(lengths: Tensor) -> Tensor:
    """Return the first row and the one after the last [items, 2] of items that follow one another."""
    ends = lengths.cumsum(0)
    return torch.stack([ends - lengths, ends], 1)


class Chosen(NamedTuple):
    """The pairs, and where their tokens are; all on the CPU."""

    dtype: torch.dtype  # in which tokens are multiplied
    image_rows: Tensor  # [images, 2] int64: the first row of each and the one after its last
    text_rows: Tensor  # [texts, 2]
    images: Tensor  # [pairs] int64
    texts: Tensor  # [pairs]
    n1: Tensor  # [pairs] tokens of its image
    n2: Tensor  # [pairs] tokens of its text
    longest: int  # of them
    save: bool  # winners for the backward
    temperature: float  # of the smooth maximum

    def groups(self, image: Tensor, text: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tokens]]:
        """Yield the places of the pairs of one image, or of one text, the rows of both sides, and their tokens."""
        by_image = len(self.images.unique()) <= len(self.texts.unique())
        item, order = (self.images if by_image else self.texts).sort(stable=True)
        for places in order.split(item.unique_consecutive(return_counts=True)[1].tolist()):
            images, texts = (places[:1], places) if by_image else (places, places[:1])
            rows = [
                torch.cat([torch.arange(*bounds) for bounds in of[chosen].tolist()]).to(image.device)
                for of, chosen in ((self.image_rows, self.images[images]), (self.text_rows, self.texts[texts]))
            ]
            lengths = Lengths(self.n2[texts].tolist()), Lengths(self.n1[images].tolist())
            yield (
                places.to(image.device),
                rows[0],
                rows[1],
                Tokens(image[rows[0]], text[rows[1]], *lengths, self.temperature),
            )


class _Pairs(torch.autograd.Function):
    """Function that keeps the winners alone."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, chosen: Chosen, module: Any) -> Pair:
        ctx.chosen, ctx.module = chosen, module
        ctx.native = hasattr(module, "pairs_forward") and not chosen.temperature
        forward = module.pairs_forward if ctx.native else functools.partial(_forward, module)
        with torch.autocast(image.device.type, enabled=False):
            scores, winners = forward(image.to(chosen.dtype), text.to(chosen.dtype), chosen)
        ctx.save_for_backward(image, text, *winners)
        return scores

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, text, *winners = ctx.saved_tensors
        chosen, needs = ctx.chosen, ctx.needs_input_grad[:2]
        backward = ctx.module.pairs_backward if ctx.native else functools.partial(_backward, ctx.module)
        of_image, of_text = (
            torch.empty_like(side, dtype=accumulation_dtype(chosen.dtype)) if need else side.new_empty(0)
            for side, need in zip((image, text), needs, strict=True)
        )
        gradients = of_image, of_text
        with torch.autocast(image.device.type, enabled=False):
            backward(
                image.to(chosen.dtype), text.to(chosen.dtype), chosen, (grads[0], grads[1]), tuple(winners), gradients
            )
        return *as_input_gradients(gradients, needs, (image, text)), None, None


def _forward(module: Backend, image: Tensor, text: Tensor, chosen: Chosen) -> tuple[Pair, Residuals]:
    """Return both similarities [pairs] by a backend without an own way to pairs: one image (or text) at a time."""
    i2t, t2i = (image.new_empty(len(chosen.images), dtype=accumulation_dtype(chosen.dtype)) for _ in "it")
    kept: list[Tensor] = []
    for places, _, _, tokens in chosen.groups(image, text):
        scores, residuals = module.forward(tokens, chosen.save)
        i2t[places], t2i[places] = (score.flatten() for score in scores)
        kept += residuals
    return (i2t, t2i), tuple(kept)


def _backward(
    module: Backend, image: Tensor, text: Tensor, chosen: Chosen, grads: Pair, kept: Residuals, gradients: Pair
) -> None:
    """Fill the ``gradients`` of both sides' rows, but for those that are empty."""
    needs = bool(gradients[0].numel()), bool(gradients[1].numel())
    groups = list(chosen.groups(image, text))
    each = len(kept) // len(groups)
    for gradient in gradients:
        gradient.zero_()
    for n, (places, *rows, tokens) in enumerate(groups):
        upstream = grads[0][places].view(tokens.shape), grads[1][places].view(tokens.shape)
        of_group = module.backward(tokens, upstream, kept[n * each : (n + 1) * each], needs)
        for gradient, own, of_rows in zip(gradients, rows, of_group, strict=True):
            if gradient.numel():
                gradient.index_add_(0, own, of_rows)


def _check_indices(image_count: int, text_count: int, images: Tensor, texts: Tensor) -> None:
    if images.shape != texts.shape or images.numel() == 0 or {images.dtype, texts.dtype} != {torch.int64}:
        raise ValueError(
            f"images and texts must be int64 of one shape with at least one pair, "
            f"got {images.dtype} {list(images.shape)} and {texts.dtype} {list(texts.shape)}"
        )
    for name, indices, count in (("images", images, image_count), ("texts", texts, text_count)):
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= count:
            raise ValueError(f"{name} holds indices from {low} to {high}, but there are {count} {name}")
