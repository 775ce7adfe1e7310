"""Pool all tokens of an image or a caption into one vector, for models that compare one vector each."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Pooling(nn.Module):
    """The mean of a sample's projected tokens, or their mean weighted by the attention of one learned query.

    ``forward(tokens [T, d], lengths [b] int64)`` returns ``[b, d]`` float32: sample j owns ``lengths[j]`` consecutive
    rows of ``tokens``, T = ``lengths.sum()``.
    """

    def __init__(self, width: int, attention: bool) -> None:
        super().__init__()
        # zero, so that attention starts as the mean
        self.query = nn.Parameter(torch.zeros(width)) if attention else None

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        tokens, lengths = tokens.float(), lengths.to(tokens.device)
        owner = torch.repeat_interleave(lengths, output_size=len(tokens))
        if self.query is None:
            weights = (1 / lengths.float())[owner]
        else:
            scores = tokens @ self.query.float() * tokens.shape[1] ** -0.5
            highest = scores.new_full((len(lengths),), -torch.inf).scatter_reduce(
                0, owner, scores.detach(), "amax"
            )
            raised = (scores - highest[owner]).exp()
            weights = raised / raised.new_zeros(len(lengths)).index_add(0, owner, raised)[owner]
        return tokens.new_zeros(len(lengths), tokens.shape[1]).index_add(0, owner, weights[:, None] * tokens)
