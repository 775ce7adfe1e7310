"""Compute similarities of chosen pairs instead of all: aligned pairs, given negatives, candidates of a first search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from late_interaction.differentiation import first_derivative_only, refuse_transforms
from late_interaction.lengths import by_length, equal_runs, index_dtype, offsets_of
from late_interaction.operator import wants_gradient
from late_interaction.packing import Similarity, accumulation_dtype, check_mask, check_tokens, full_precision

_TILE_ELEMENTS = 1 << 22


def late_interaction_pairs(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    images: Tensor,
    texts: Tensor,
    *,
    image_mask: Tensor | None = None,
) -> Similarity:
    """Compute :func:`late_interaction` of image ``images[p]`` with text ``texts[p]`` for every place p.

    It is differentiable. ``images`` and ``texts`` are int64 indices of one shape, which both results have too:

        aligned pairs                images = texts = torch.arange(b)
        k candidates of each image   images = torch.arange(b)[:, None].expand(-1, k), texts [b, k]
        k candidates of each text    texts = torch.arange(t)[:, None].expand(-1, k), images [t, k]

    The other arguments and the errors are late_interaction's. Pairs of one length are multiplied together, in
    PyTorch, one block at a time; for the gradient the winners are kept, n1 + n2 small integers a pair.
    If most pairs are wanted, late_interaction is faster.
    """
    lengths, _ = check_tokens(image_tokens, text_tokens, text_lengths)
    if image_mask is not None:
        check_mask(image_tokens, image_mask)
        # They are replaced, since 0 times NaN is NaN in the gradient.
        image_tokens = torch.where(image_mask[..., None], image_tokens, torch.zeros_like(image_tokens))
    _check_indices(image_tokens, lengths, images, texts)
    refuse_transforms("late_interaction_pairs")
    chosen = _Chosen(images, texts, lengths, image_mask)
    if not wants_gradient(image_tokens, text_tokens):
        i2t, t2i, _ = _score(image_tokens, text_tokens, chosen, save=False)
        return Similarity(i2t, t2i)
    return Similarity(*_Pairs.apply(image_tokens, text_tokens, chosen))


class _Chosen(NamedTuple):
    """The pairs, and the borders of each item's tokens."""

    images: Tensor
    texts: Tensor  # the same shape
    lengths: list[int]  # those of all texts
    mask: Tensor | None

    def blocks(self, n1: int, device: torch.device) -> Iterator[_Block]:
        """Yield blocks of pairs with equally long texts."""
        starts = torch.tensor(offsets_of(self.lengths)[:-1])
        images, texts = self.images.flatten().cpu(), self.texts.flatten().cpu()
        order = by_length(torch.tensor(self.lengths)[texts].tolist(), texts.device)
        for length, start, end in equal_runs(order.lengths):
            for places in order.items[start:end].split(max(1, _TILE_ELEMENTS // (n1 * length))):
                rows = starts[texts[places]][:, None] + torch.arange(length)
                yield _Block(*(part.to(device) for part in (places, images[places], rows)))


class _Block(NamedTuple):
    places: Tensor  # [pairs] where their results belong
    images: Tensor  # [pairs]
    rows: Tensor  # [pairs, n2] of the packed text tokens


class _Pairs(torch.autograd.Function):
    """Function that keeps the winners, n1 + n2 numbers a pair, and multiplies block by block in either pass."""

    @staticmethod
    def forward(ctx: Any, image_tokens: Tensor, text_tokens: Tensor, chosen: _Chosen) -> tuple[Tensor, Tensor]:
        i2t, t2i, winners = _score(image_tokens, text_tokens, chosen, save=True)
        ctx.save_for_backward(image_tokens, text_tokens, *winners)
        ctx.chosen = chosen
        return i2t, t2i

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, text, *winners = ctx.saved_tensors
        chosen, needs = ctx.chosen, ctx.needs_input_grad[:2]
        gradients = [
            torch.zeros_like(side, dtype=grads[0].dtype) if need else None
            for side, need in zip((image, text), needs, strict=True)
        ]
        of_i2t, of_t2i = (grad.flatten() for grad in grads)
        counts = None if chosen.mask is None else chosen.mask.sum(dim=1)
        saved = iter(winners)
        with torch.autocast(image.device.type, enabled=False), full_precision(image.device):
            for places, mask, rows in chosen.blocks(image.shape[1], image.device):
                to_text, to_image = next(saved).long(), next(saved).long()  # [pairs, n1] and [pairs, n2]
                by_image = of_i2t[places] / (image.shape[1] if counts is None else counts[mask])
                by_token = by_image[:, None].expand_as(to_text)
                if chosen.mask is not None:
                    by_token = torch.where(chosen.mask[mask], by_token, 0)
                by_word = (of_t2i[places] / rows.shape[1])[:, None].expand_as(to_image)
                weights = by_token.new_zeros(*to_text.shape, rows.shape[1])
                weights.scatter_(2, to_text[..., None], by_token[..., None])
                weights.scatter_add_(1, to_image[:, None], by_word[:, None])
                if gradients[0] is not None:
                    gradients[0].index_add_(0, mask, weights @ text[rows].to(weights.dtype))
                if gradients[1] is not None:
                    of_rows = weights.mT @ image[mask].to(weights.dtype)
                    gradients[1].index_add_(0, rows.flatten(), of_rows.flatten(0, 1))
        return *(g if g is None else g.to(t.dtype) for g, t in zip(gradients, (image, text), strict=True)), None


def _score(
    image_tokens: Tensor, text_tokens: Tensor, chosen: _Chosen, save: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return both similarities and, with ``save``, two tensors of winners for each block."""
    device, wide = image_tokens.device, accumulation_dtype(image_tokens.dtype)
    i2t, t2i = (torch.empty(chosen.images.numel(), dtype=wide, device=device) for _ in range(2))
    winners: list[Tensor] = []
    with torch.no_grad(), torch.autocast(device.type, enabled=False), full_precision(device):
        for places, own, rows in chosen.blocks(image_tokens.shape[1], device):
            similarity = image_tokens[own].to(wide) @ text_tokens[rows].to(wide).mT  # [pairs, n1, n2]
            of_images, to_text = similarity.max(dim=2)
            if chosen.mask is None:
                i2t[places] = of_images.mean(dim=1)
            else:
                mask = chosen.mask[own]
                i2t[places] = torch.where(mask, of_images, 0).sum(dim=1) / mask.sum(dim=1)
                similarity = torch.where(mask[:, :, None], similarity, -torch.inf)
            of_texts, to_image = similarity.max(dim=1)
            t2i[places] = of_texts.mean(dim=1)
            if save:
                winners += [to_text.to(index_dtype(rows.shape[1])), to_image.to(index_dtype(image_tokens.shape[1]))]
    shape = chosen.images.shape
    return i2t.view(shape), t2i.view(shape), winners


def _check_indices(image_tokens: Tensor, lengths: list[int], images: Tensor, texts: Tensor) -> None:
    if images.shape != texts.shape or images.numel() == 0:
        raise ValueError(
            f"images and texts must have one shape with at least one pair, "
            f"got {list(images.shape)} and {list(texts.shape)}"
        )
    for name, indices, count in (("images", images, len(image_tokens)), ("texts", texts, len(lengths))):
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= count:
            raise ValueError(f"{name} holds indices from {low} to {high}, but there are {count} {name}")
