"""The paper's third saving: keep only the share of tokens that matter most to the local batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from filip.interaction.packed import accumulation_dtype, check_tokens

_TILE_ELEMENTS = 1 << 22


@torch.no_grad()
def token_scores(image_tokens: Tensor, text_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Score of a token: its largest similarity to *any* token of *any* item of the other side, own pair or not.

    ``image_tokens`` [b, n1, d] and ``text_tokens`` [T, d] give [b, n1] and [T] in small tiles.
    """
    wide = accumulation_dtype(image_tokens.dtype)
    rows, texts = image_tokens.flatten(0, 1).to(wide), text_tokens.to(wide)
    image_scores, text_scores = [], torch.full_like(texts[:, 0], -math.inf)
    with torch.autocast(rows.device.type, enabled=False):
        for block in rows.split(max(1, _TILE_ELEMENTS // len(texts))):
            tile = block @ texts.T
            image_scores.append(tile.amax(dim=1))
            text_scores = torch.maximum(text_scores, tile.amax(dim=0))
    return torch.cat(image_scores).view(image_tokens.shape[:2]), text_scores


def keep_tokens(
    image_tokens: Tensor, text_tokens: Tensor, text_lengths: Tensor, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep of each image and each text the ``share`` of tokens with the highest score (see token_scores).

    Shapes as in late_interaction. Of n valid tokens max(1, ceil(share * n)) stay, in their order; of equal
    scores the lower index stays. Call it before tokens are sent to other workers. Gradients flow to the
    tokens kept; the selection is not differentiated. ``share=1`` returns the arguments.
    Raises ValueError for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share of tokens to keep must be in (0, 1], got {share}")
    lengths = check_tokens(image_tokens, text_tokens, text_lengths)
    if share == 1:
        return image_tokens, text_tokens, text_lengths
    image_scores, text_scores = token_scores(image_tokens, text_tokens)
    kept_images = _best(image_scores, _count(image_tokens.shape[1], share))
    images = image_tokens.gather(1, kept_images[:, :, None].expand(-1, -1, image_tokens.shape[2]))
    kept_texts, start = [], 0
    counts = [_count(n, share) for n in lengths]
    for length, count in zip(lengths, counts, strict=True):
        kept_texts.append(start + _best(text_scores[None, start : start + length], count)[0])
        start += length
    kept_lengths = torch.tensor(counts, dtype=text_lengths.dtype, device=text_lengths.device)
    return images, text_tokens[torch.cat(kept_texts)], kept_lengths


def _count(tokens: int, share: float) -> int:
    # 1e-9: 0.07 * 100 is 7.000000000000001 in binary, and must not be rounded up to 8.
    return max(1, math.ceil(share * tokens - 1e-9))


def _best(scores: Tensor, count: int) -> Tensor:
    """Indices [rows, count] of the best scores, ascending; sort is stable, topk promises nothing on ties."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
