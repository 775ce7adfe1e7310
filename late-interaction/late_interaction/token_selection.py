"""Select tokens, the paper's third saving: keep only the ones that matter most to the local batch."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from late_interaction.lengths import offsets_of
from late_interaction.packing import accumulation_dtype, check_tokens, product

_TILE_ELEMENTS = 1 << 22


SCORES = ("maximum", "contrast", "random")


class TokenChoice(NamedTuple):
    """The tokens that stay, in ascending order."""

    image_rows: Tensor  # [b * k] int64, into the b * n1 tokens of all images
    text_rows: Tensor  # [K] int64, into the packed tokens of all texts
    text_lengths: Tensor  # [texts], with sum K


@torch.no_grad()
def token_scores(
    image_tokens: Tensor, text_tokens: Tensor, score: str = "maximum", generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Score each token against *all* tokens of the other side, whichever pair they belong to.

    "maximum" is the paper's: the largest similarity. "contrast" subtracts the mean similarity from it, so that a token
    which is equally close to everything ([BOS], "a", a comma) scores low. "random" draws a number for each token, from
    ``generator`` on the CPU (None: PyTorch's own). None knows which image and text belong together: a score that does
    would give the loss the answer.

    ``image_tokens`` [b, n1, d] and ``text_tokens`` [T, d] give [b, n1] and [T] in small tiles.
    """
    if score not in SCORES:
        raise ValueError(f"score={score!r} is unknown; choose one of {', '.join(SCORES)}")
    if score == "random":
        drawn = [torch.rand(tokens.shape[:-1], generator=generator) for tokens in (image_tokens, text_tokens)]
        return drawn[0].to(image_tokens.device), drawn[1].to(text_tokens.device)
    rows, wide = image_tokens.flatten(0, 1), accumulation_dtype(image_tokens.dtype)
    image_scores, text_scores = [], torch.full_like(text_tokens[:, 0], -math.inf, dtype=wide)
    with torch.autocast(rows.device.type, enabled=False):
        for block in rows.split(max(1, _TILE_ELEMENTS // len(text_tokens))):
            tile = product(block, text_tokens)
            image_scores.append(tile.amax(dim=1))
            text_scores = torch.maximum(text_scores, tile.amax(dim=0))
        of_images = torch.cat(image_scores)
        if score == "contrast":
            of_images = of_images - rows.to(wide) @ text_tokens.to(wide).mean(dim=0)
            text_scores = text_scores - text_tokens.to(wide) @ rows.to(wide).mean(dim=0)
    return of_images.view(image_tokens.shape[:2]), text_scores


def choose_tokens(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    keep_ratio: float,
    *,
    score: str = "maximum",
    minimum: int = 1,
    generator: torch.Generator | None = None,
) -> TokenChoice:
    """Choose the fraction ``keep_ratio`` of each image's and each text's tokens with the highest scores.

    For the scores see token_scores; shapes are as in late_interaction. Of n valid tokens max(``minimum``,
    ceil(keep_ratio * n)) stay (or all n, if there are fewer), in their order; among equal scores the lower index wins.
    Call it before tokens are sent to other ranks. The selection is not differentiated. Raises ValueError for a
    keep_ratio outside (0, 1], a minimum below 1 or an unknown score.
    """
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio must be in (0, 1], got {keep_ratio}")
    if minimum < 1:
        raise ValueError(f"minimum must be at least 1 token, got {minimum}")
    check_tokens(image_tokens, text_tokens, text_lengths)
    scores = token_scores(image_tokens, text_tokens, score, generator)
    return best_of_each(*scores, text_lengths, keep_ratio, minimum)


def best_of_each(
    image_scores: Tensor, text_scores: Tensor, text_lengths: Tensor, keep_ratio: float, minimum: int = 1
) -> TokenChoice:
    """Choose the tokens with the highest ``image_scores`` [b, n1] per image and ``text_scores`` [T] per text."""
    b, n1 = image_scores.shape
    lengths = text_lengths.tolist()
    counts = [kept_count(n, keep_ratio, minimum) for n in lengths]
    best = _best(image_scores.flatten(), [n1] * b, [kept_count(n1, keep_ratio, minimum)] * b)
    selected_lengths = torch.tensor(counts, dtype=text_lengths.dtype, device=text_lengths.device)
    return TokenChoice(best, _best(text_scores, lengths, counts), selected_lengths)


def select_tokens(
    image_tokens: Tensor, text_tokens: Tensor, text_lengths: Tensor, keep_ratio: float, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens that :func:`choose_tokens` chooses, with gradients; ``keep_ratio=1`` returns the arguments."""
    if keep_ratio == 1:
        return image_tokens, text_tokens, text_lengths
    choice = choose_tokens(image_tokens, text_tokens, text_lengths, keep_ratio, **options)
    return take_tokens(image_tokens, text_tokens, choice)


def take_tokens(image_tokens: Tensor, text_tokens: Tensor, choice: TokenChoice) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens of a choice, [b, k, d] and [K, d], and the texts' lengths."""
    images = image_tokens.flatten(0, 1)[choice.image_rows].view(len(image_tokens), -1, image_tokens.shape[2])
    return images, text_tokens[choice.text_rows], choice.text_lengths


def kept_count(tokens: int, keep_ratio: float, minimum: int) -> int:
    """Return how many of an item's ``tokens`` stay, see :func:`choose_tokens`."""
    # 1e-9: 0.07 * 100 is 7.000000000000001 in binary, and must not be rounded up to 8.
    return min(tokens, max(minimum, math.ceil(keep_ratio * tokens - 1e-9)))


def _best(scores: Tensor, lengths: list[int], counts: list[int]) -> Tensor:
    """Return ascending indices into packed ``scores`` of the ``counts[j]`` best of each item of ``lengths[j]``."""
    per_item = torch.tensor(lengths)
    items = torch.repeat_interleave(torch.arange(len(lengths)), per_item)
    rank = torch.arange(len(items)) - torch.tensor(offsets_of(lengths)[:-1])[items]
    best = (rank < torch.tensor(counts)[items]).nonzero()[:, 0]  # on the host, where reading a number does not wait
    # Two stable sorts (topk promises nothing about ties): by item, within it by falling score, then by index.
    order = scores.argsort(descending=True, stable=True)
    order = order[items.to(scores.device)[order].argsort(stable=True)]
    return order[best.to(scores.device)].sort().values
