"""Search: one text among many items, whose tokens are of 16 or 8 bits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from late_interaction import native

_BLOCK_ITEMS = 1 << 14  # for PyTorch: with fewer, threads wait for each other


@torch.no_grad()
def search(
    words: Tensor, tokens: Tensor, scales: Tensor | None = None, *, lengths: Tensor | None = None, k: int = 10
) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest of :func:`text_scores` (fewer if there are fewer items) and which items have them."""
    scores = text_scores(words, tokens, scales, lengths=lengths)
    values, items = scores.topk(min(k, len(scores)))
    return values, items


@torch.no_grad()
def text_scores(
    words: Tensor, tokens: Tensor, scales: Tensor | None = None, *, lengths: Tensor | None = None
) -> Tensor:
    """Return s^T of one text for every item: the mean over its words of the largest product with a token of the item.

    Arguments
        words    float [n, d], the tokens of the text
        tokens   [items, n1, d], or with ``lengths`` [items] one item after the other [T, d]; bfloat16, int8 or another
                 float type. Rows may have other data between them, as in a file of records
        scales   float32 [items, n1] or [T]: what the numbers of an int8 token are multiplied by

    Returns float32 [items]. On CPUs with AVX-512's products of bfloat16 and int8 (AMD since Zen 4, Intel since Sapphire
    Rapids) one kernel reads each token once, and rounds the words to the tokens' type: of unit vectors with 128 numbers
    a score is within 0.002 of the exact one. Elsewhere PyTorch multiplies int8 with words of 7 bits (0.004), and
    everything else in float32. Raises ValueError for shapes that do not match.
    """
    if lengths is None:
        lengths = torch.full((len(tokens),), tokens.shape[1])
        tokens, scales = tokens.flatten(0, 1), scales if scales is None else scales.flatten()
    if tokens.dim() != 2 or words.shape[1:] != tokens.shape[1:] or int(lengths.sum()) != len(tokens):
        raise ValueError(
            f"words {list(words.shape)}, tokens {list(tokens.shape)}, sum of lengths {int(lengths.sum())}: "
            "words and tokens need one width, and the lengths all tokens"
        )
    given = None if scales is None else (scales.dtype, scales.shape, scales.device)
    if given != ((torch.float32, tokens.shape[:1], tokens.device) if tokens.dtype == torch.int8 else None):
        raise ValueError(f"int8 tokens need one float32 scale each, other tokens none; got {tokens.dtype} and {given}")
    if not (len(words) and len(lengths) and lengths.min() > 0):
        raise ValueError("a text without words, or an item without tokens, has no score")
    if tokens.is_cpu:
        scores = native.text_scores(words.float(), tokens, scales, lengths)
        if scores is not None:
            return scores
    return torch.cat(
        [
            torch.segment_reduce(_products(words, rows, of_rows), "max", lengths=some, axis=0).mean(1)
            for some, rows, of_rows in _blocks(tokens, scales, lengths)
        ]
    )


def _blocks(tokens: Tensor, scales: Tensor | None, lengths: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    first = 0
    for some in lengths.split(_BLOCK_ITEMS):
        rows = slice(first, first := first + int(some.sum()))
        yield some.to(tokens.device), tokens[rows], None if scales is None else scales[rows]


def _products(words: Tensor, tokens: Tensor, scales: Tensor | None) -> Tensor:
    """Return the products of each token with each word, float32 [T, n]."""
    if scales is None or not tokens.is_cpu:
        floats = tokens.float() if scales is None else tokens * scales[:, None]
        return floats @ words.float().T
    scale = words.abs().amax(1).clamp(min=1e-12) / 63  # CPUs without VNNI add pairs of products in 16 bits
    whole = (words / scale[:, None]).round().to(torch.int8).T
    return torch._int_mm(tokens.contiguous(), whole) * scales[:, None] * scale
