"""Compute similarities of chosen pairs instead of all: aligned pairs, given negatives, candidates of a first search."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from filip.interaction.lengths import offsets_of
from filip.interaction.packing import Similarity, accumulation_dtype, check_mask, check_tokens, full_precision

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

    The other arguments and the errors are those of late_interaction. Pairs of one length are multiplied together, in
    plain PyTorch; without gradients only one block of them is in memory, with gradients all are: n1 * n2 floats a pair.
    If most pairs are wanted, late_interaction is faster.
    """
    lengths, _ = check_tokens(image_tokens, text_tokens, text_lengths)
    if image_mask is not None:
        check_mask(image_tokens, image_mask)
        # They are replaced, since 0 times NaN is NaN in the gradient.
        image_tokens = torch.where(image_mask[..., None], image_tokens, torch.zeros_like(image_tokens))
    _check_indices(image_tokens, lengths, images, texts)
    device, wide = image_tokens.device, accumulation_dtype(image_tokens.dtype)
    first, second, n1 = images.flatten().to(device), texts.flatten().to(device), image_tokens.shape[1]
    starts = torch.tensor(offsets_of(lengths)[:-1], device=device)
    per_pair = torch.tensor(lengths)[texts.flatten().cpu()]
    order = per_pair.argsort(stable=True)
    found: list[tuple[Tensor, Tensor]] = []
    with torch.autocast(device.type, enabled=False), full_precision(device):
        for places, length in _blocks(order, per_pair[order].tolist(), n1):
            own, rows = first[places], starts[second[places]][:, None] + torch.arange(length, device=device)
            similarity = image_tokens[own].to(wide) @ text_tokens[rows].to(wide).mT  # [pairs, n1, n2]
            found.append(_maxima(similarity, None if image_mask is None else image_mask[own]))
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    i2t, t2i = (torch.cat(parts)[back.to(device)].view(images.shape) for parts in zip(*found, strict=True))
    return Similarity(i2t, t2i)


def _maxima(similarity: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if mask is None:
        return similarity.max(dim=2).values.mean(dim=1), similarity.max(dim=1).values.mean(dim=1)
    of_images = torch.where(mask, similarity.max(dim=2).values, 0).sum(dim=1) / mask.sum(dim=1)
    lowest = torch.where(mask[:, :, None], similarity, -torch.inf)
    return of_images, lowest.max(dim=1).values.mean(dim=1)


def _blocks(order: Tensor, lengths: list[int], n1: int) -> Iterator[tuple[Tensor, int]]:
    """Yield (places, length) of blocks of pairs whose texts are equally long.

    ``lengths`` ascend, as ``order`` puts them.
    """
    start = 0
    for length, run in itertools.groupby(lengths):
        end = start + sum(1 for _ in run)
        for places in order[start:end].split(max(1, _TILE_ELEMENTS // (n1 * length))):
            yield places, length
        start = end


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
