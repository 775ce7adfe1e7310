"""Pool all tokens of an image or a caption into one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


class Pooling(nn.Module):
    """The mean of a sample's projected tokens, or their means weighted by the attention of learned queries.

    ``forward(tokens [T, d], lengths [b] int64)`` returns ``[b, queries, d]`` float32, one row for the mean
    (``queries`` 0): sample j owns ``lengths[j]`` consecutive rows of ``tokens``, T = ``lengths.sum()``.
    heads: each query has a projection, and the result is their concatenation ``[b, 1, queries * d]``.
    """

    def __init__(self, width: int, queries: int, heads: bool = False) -> None:
        super().__init__()
        # One query starts at zero, which is the mean. Several would stay alike for ever, and start apart.
        start = torch.zeros(width) if queries == 1 else torch.randn(queries, width)
        self.query = nn.Parameter(start) if queries else None
        self.heads = nn.Parameter(width**-0.5 * torch.randn(queries, width, width)) if heads else None

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        on_host, tokens, lengths = lengths, tokens.float(), lengths.to(tokens.device)
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
        if self.heads is None:
            return pooled
        return torch.einsum("bkd,kde->bke", pooled, self.heads.float()).flatten(1)[:, None]

    def each(self, tokens: Tensor) -> Tensor:
        """Return what ``forward`` makes of each token [..., d] alone: itself, or with heads ``[..., queries * d]``."""
        return tokens if self.heads is None else torch.einsum("...d,kde->...ke", tokens, self.heads).flatten(-2)
