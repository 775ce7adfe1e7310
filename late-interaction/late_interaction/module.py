"""Provide FILIP's loss as a module, for other trainings."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from late_interaction.backends import SmoothMaximum
from late_interaction.collectives import Group, group_rank
from late_interaction.distributed import Options, gather_ids, score_ranks
from late_interaction.loss import ContrastiveOutput, contrastive_loss
from late_interaction.pairs import late_interaction_pairs


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
        maximum: SmoothMaximum | None = None,
        recompute: bool = False,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        if not 0 < scale <= largest_scale < math.inf:
            raise ValueError(f"0 < scale <= largest_scale must hold, got {scale} and {largest_scale}")
        self.log_scale = nn.Parameter(torch.tensor([math.log(scale)]))
        self.largest_scale, self.normalize = largest_scale, normalize
        self.options = Options(group, exchange, transport_dtype, backend, maximum, recompute)

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        text_lengths: Tensor,
        ids: Tensor | None = None,
        image_mask: Tensor | None = None,
        negatives: Tensor | None = None,
        negatives_mask: Tensor | None = None,
    ) -> ContrastiveOutput:
        """Return the loss of this rank's tokens, which are as :func:`late_interaction` takes them.

        ``ids`` [b] int64: pairs with an equal id, on whichever rank, count as positives of each other. Averaging the
        ranks' gradients, as DDP does, gives those of the whole batch. ``negatives`` [b, k, n2, d] are k texts for each
        image that do not describe it, met by no other; ``negatives_mask`` [b, k, n2] is true where a token exists.
        """
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(self.largest_scale))
        text_mask = text_lengths
        if text_tokens.dim() == 3 and getattr(text_lengths, "ndim", 0) == 1:  # packing's would break a graph
            places = torch.arange(text_tokens.shape[1], device=text_tokens.device)
            text_mask = places < text_lengths.to(text_tokens.device)[:, None]
        image_tokens, text_tokens = self._unit(image_tokens, image_mask), self._unit(text_tokens, text_mask)
        similarity, counts = score_ranks(image_tokens, text_tokens, text_lengths, self.options, image_mask)
        offset, all_ids = sum(counts[: group_rank(self.options.group)]), None
        if ids is not None:
            all_ids, _ = gather_ids(ids, group=self.options.group, counts=counts)
        of_negatives = None
        if negatives is not None:
            every = negatives.new_ones(negatives.shape[:-1], dtype=torch.bool)
            mask = every if negatives_mask is None else negatives_mask
            own = torch.arange(mask[..., 0].numel()).view(mask.shape[:2])
            tokens = image_tokens, self._unit(negatives, mask).flatten(0, 1), mask.flatten(0, 1)
            how: Any = {"image_mask": image_mask, "backend": self.options.backend, "maximum": self.options.maximum}
            of_negatives = late_interaction_pairs(*tokens, own // own.shape[1], own, **how).i2t
        scale = self.log_scale.exp()
        return contrastive_loss(similarity, scale, offset=offset, ids=ids, all_ids=all_ids, negatives=of_negatives)

    def _unit(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        # Padding may hold NaN, and 0 times NaN is not 0 in a gradient. score_ranks refuses a mask that does not fit.
        if self.normalize and isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == tokens.shape[:-1]:
            tokens = torch.where(mask[..., None], tokens, 0)
        return F.normalize(tokens, dim=-1) if self.normalize else tokens
