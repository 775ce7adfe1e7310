"""Pool all tokens of an image or a caption into one vector."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


class Pooling(nn.Module):
    """The mean of a sample's projected tokens, or of numbers that are made of each, or weighted by learned queries.

    ``forward(tokens [T, d], lengths [b] int64)`` returns ``[b, numbers]`` float32: sample j owns ``lengths[j]``
    consecutive rows of ``tokens``, T = ``lengths.sum()``. kind, with the numbers of its vector:

    mean: d; attention: d, by the attention of one query. heads: those of each of ``heads`` queries, projected, heads *
    d. relu: the mean of that many rectified linear features. bilinear: the mean of the products of two projections,
    of the root of that many numbers each.
    """

    def __init__(self, width: int, kind: str, heads: int = 1) -> None:
        super().__init__()
        several = kind == "heads"
        # One query starts at zero, which is the mean. Several would stay alike for ever, and start apart.
        start = torch.randn(heads, width) if several else torch.zeros(width)
        self.query = nn.Parameter(start) if kind in ("attention", "heads") else None
        self.heads = nn.Parameter(width**-0.5 * torch.randn(heads, width, width)) if several else None
        rows = {"relu": heads * width, "bilinear": 2 * math.isqrt(heads * width)}.get(kind)
        self.features = None if rows is None else nn.Parameter(width**-0.5 * torch.randn(rows, width))
        self.kind = kind

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        on_host, lengths = lengths, lengths.to(tokens.device)
        tokens = tokens.float() if self.features is None else self.each(tokens.float())
        owner = torch.repeat_interleave(lengths, output_size=len(tokens))
        if self.query is None:
            weights = (1 / lengths.float())[owner, None]
        else:
            width = tokens.shape[1]
            scores = tokens @ self.query.float().view(-1, width).T * width**-0.5
            highest = scores.new_full((len(lengths), scores.shape[1]), -torch.inf).scatter_reduce(
                0, owner[:, None].expand_as(scores), scores.detach(), "amax"
            )
            raised = (scores - highest[owner]).exp()
            weights = raised / raised.new_zeros(highest.shape).index_add(0, owner, raised)[owner]
        if weights.shape[1] > 1:  # padded: a token times each of its weights would be as many copies of it
            padded = [pad_sequence(x.split(on_host.tolist()), batch_first=True) for x in (weights, tokens)]
            pooled = padded[0].transpose(1, 2) @ padded[1]
        else:
            pooled = tokens.new_zeros(len(lengths), 1, tokens.shape[1])
            pooled = pooled.index_add(0, owner, weights[:, :, None] * tokens[:, None, :])
        return (pooled if self.heads is None else torch.einsum("bkd,kde->bke", pooled, self.heads.float())).flatten(1)

    def each(self, tokens: Tensor) -> Tensor:
        """Return what ``forward`` makes of each token [..., d] alone, [..., numbers]."""
        if self.heads is not None:
            return torch.einsum("...d,kde->...ke", tokens, self.heads).flatten(-2)
        if self.features is None:
            return tokens
        made = F.linear(tokens, self.features.float()).float()  # a matrix product is in 16 bits under autocast
        if self.kind == "relu":
            return made.relu()
        first, second = made.chunk(2, -1)
        return (first.unsqueeze(-1) * second.unsqueeze(-2)).flatten(-2)
