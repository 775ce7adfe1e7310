"""Provide FILIP's loss as a module, for other trainings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from late_interaction.collectives import Group, group_rank
from late_interaction.distributed import Options, gather_ids, score_ranks
from late_interaction.loss import ContrastiveOutput, contrastive_loss


class LateInteractionLoss(nn.Module):
    """Symmetric cross-entropy over the token-wise similarity of all pairs on all ranks, with a learnable temperature.

    ``log_scale`` [1] is a parameter: pass it to the optimiser, without weight decay. It is kept at or below
    log(``largest_scale``) by clamping the parameter itself before each use, so that its gradient never vanishes.
    ``normalize`` divides each token by its length, so that similarities are cosines; False: their length is 1.
    Options are those of :func:`distributed_late_interaction`; on one process nothing is sent.
    """

    def __init__(
        self,
        scale: float = 1 / 0.07,
        largest_scale: float = 100.0,
        *,
        group: Group = None,
        exchange: str = "gather",
        transport_dtype: torch.dtype | None = None,
        backend: str = "auto",
        recompute: bool = False,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if not 0 < scale <= largest_scale < math.inf:
            raise ValueError(f"0 < scale <= largest_scale must hold, got {scale} and {largest_scale}")
        self.log_scale = nn.Parameter(torch.tensor([math.log(scale)]))
        self.largest_scale, self.normalize = largest_scale, normalize
        self.options = Options(group, exchange, transport_dtype, backend, recompute)

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        text_lengths: Tensor,
        ids: Tensor | None = None,
        image_mask: Tensor | None = None,
    ) -> ContrastiveOutput:
        """Return the loss of this rank's ``image_tokens`` [b, n1, d] and packed ``text_tokens`` [T, d], lengths [b].

        ``image_mask`` [b, n1] as in :func:`late_interaction`. ``ids`` [b] int64: pairs
        with an equal id, on whichever rank, count as positives of each other. Averaging the ranks' gradients, as DDP
        does, gives those of the whole batch.
        """
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(self.largest_scale))
        if self.normalize:
            image_tokens, text_tokens = F.normalize(image_tokens, dim=-1), F.normalize(text_tokens, dim=-1)
        similarity, counts = score_ranks(image_tokens, text_tokens, text_lengths, self.options, image_mask)
        offset, all_ids = sum(counts[: group_rank(self.options.group)]), None
        if ids is not None:
            all_ids, _ = gather_ids(ids, group=self.options.group, counts=counts)
        return contrastive_loss(similarity, self.log_scale.exp(), offset=offset, ids=ids, all_ids=all_ids)
