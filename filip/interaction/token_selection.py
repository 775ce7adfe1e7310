"""The paper's third saving: keep only the tokens that matter most to the local batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from filip.interaction.packing import accumulation_dtype, check_tokens, offsets_of, product

_TILE_ELEMENTS = 1 << 22


@torch.no_grad()
def token_scores(image_tokens: Tensor, text_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Score of a token: its largest similarity to *any* token of *any* item of the other side, own pair or not.

    ``image_tokens`` [b, n1, d] and ``text_tokens`` [T, d] give [b, n1] and [T] in small tiles.
    """
    rows, wide = image_tokens.flatten(0, 1), accumulation_dtype(image_tokens.dtype)
    image_scores, text_scores = [], torch.full_like(text_tokens[:, 0], -math.inf, dtype=wide)
    with torch.autocast(rows.device.type, enabled=False):
        for block in rows.split(max(1, _TILE_ELEMENTS // len(text_tokens))):
            tile = product(block, text_tokens)
            image_scores.append(tile.amax(dim=1))
            text_scores = torch.maximum(text_scores, tile.amax(dim=0))
    return torch.cat(image_scores).view(image_tokens.shape[:2]), text_scores


def select_tokens(
    image_tokens: Tensor, text_tokens: Tensor, text_lengths: Tensor, keep_ratio: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The fraction ``keep_ratio`` of each image's and each text's tokens with the highest scores (see token_scores).

    Shapes as in late_interaction. Of n valid tokens max(1, ceil(keep_ratio * n)) stay, in their order; among equal
    scores the lower index wins. Call it before tokens are sent to other ranks. Gradients flow to the
    selected tokens; the selection is not differentiated. ``keep_ratio=1`` returns the arguments.
    Raises ValueError for a keep_ratio outside (0, 1].
    """
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio must be in (0, 1], got {keep_ratio}")
    lengths = check_tokens(image_tokens, text_tokens, text_lengths)
    if keep_ratio == 1:
        return image_tokens, text_tokens, text_lengths
    image_scores, text_scores = token_scores(image_tokens, text_tokens)
    b, n1 = image_scores.shape
    counts = [_count(n, keep_ratio) for n in lengths]
    best = _best(image_scores.flatten(), [n1] * b, [_count(n1, keep_ratio)] * b)
    images = image_tokens.flatten(0, 1)[best].view(b, -1, image_tokens.shape[2])
    selected_lengths = torch.tensor(counts, dtype=text_lengths.dtype, device=text_lengths.device)
    return images, text_tokens[_best(text_scores, lengths, counts)], selected_lengths


def _count(tokens: int, keep_ratio: float) -> int:
    # 1e-9: 0.07 * 100 is 7.000000000000001 in binary, and must not be rounded up to 8.
    return max(1, math.ceil(keep_ratio * tokens - 1e-9))


def _best(scores: Tensor, lengths: list[int], counts: list[int]) -> Tensor:
    """Ascending indices into packed ``scores`` of the ``counts[j]`` best of each item of ``lengths[j]``."""
    device = scores.device
    per_item = torch.tensor(lengths, device=device)
    item_of = torch.repeat_interleave(torch.arange(len(lengths), device=device), per_item)
    # Two stable sorts (topk promises nothing about ties): by item, within it by falling score, then by index.
    order = scores.argsort(descending=True, stable=True)
    order = order[item_of[order].argsort(stable=True)]
    rank = (
        torch.arange(len(order), device=device)
        - torch.tensor(offsets_of(lengths)[:-1], device=device)[item_of]
    )
    return order[rank < torch.tensor(counts, device=device)[item_of]].sort().values
