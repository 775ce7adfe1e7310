"""SigLIP's loss (Zhai et al., 2023), on one vector per side and on the token-wise similarity.

    L = - 1/b  sum over own images i and all texts j of  log sigmoid(z_ij (t s_ij + c))

z_ij is 1 for positives (the own pair, or with soft targets all pairs of its group) and -1 otherwise. On tokens it is
the mean of this for s^I, by image, and for s^T, by text. The temperature is the one that all terms share, so it
starts at the model's ``init_temperature`` where SigLIP starts at 0.1; the bias c starts at -10 as in SigLIP.
open_clip's ``SigLipLoss`` counts the own pair alone as positive.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.common.citations import FILIP, SIGLIP
from filip.train.losses.similarity import pooled_memory, token_wise_memory, token_wise_similarity
from filip.train.losses.term import LossInput, Term, TermOutput
from late_interaction import distributed_pooled_similarity
from late_interaction.packing import accumulation_dtype

INITIAL_BIAS = -10.0


def compute(batch: LossInput) -> TermOutput:
    """Compute the sigmoid loss over the cosine of all pairs of vectors."""
    similarity = distributed_pooled_similarity(*batch.vectors).i2t
    found = sigmoid_of(batch, similarity, "sigmoid_bias")
    return TermOutput(found.loss, {"accuracy/i2t": found.accuracy, **_bias(batch, "sigmoid_bias")})


def compute_token_wise(batch: LossInput) -> TermOutput:
    """Compute the mean of the sigmoid losses over s^I and over s^T."""
    similarity, metrics = batch.once("token_wise", token_wise_similarity)
    i2t, t2i = (sigmoid_of(batch, matrix, "token_wise_sigmoid_bias") for matrix in (similarity.i2t, similarity.t2i.T))
    halves = {"loss/i2t": i2t.loss, "loss/t2i": t2i.loss, "accuracy/i2t": i2t.accuracy, "accuracy/t2i": t2i.accuracy}
    return TermOutput((i2t.loss + t2i.loss) / 2, halves | metrics | _bias(batch, "token_wise_sigmoid_bias"))


def sigmoid_of(batch: LossInput, similarity: Tensor, bias: str) -> SigmoidOutput:
    """Compute :func:`sigmoid_loss` of a batch's ``similarity`` [b, N]; ``bias`` names the parameter."""
    scale, ids, all_ids = batch.encoded.logit_scale, batch.positives, batch.all_positives
    return sigmoid_loss(similarity, scale, batch.parameters[bias], offset=batch.offset, ids=ids, all_ids=all_ids)


def _bias(batch: LossInput, name: str) -> dict[str, Tensor]:
    return {"optimizer/logit_bias": batch.parameters[name].mean()}


SIGMOID = Term(
    compute,
    "vectors",
    pooled_memory,
    "sigmoid of the cosine of [CLS] and [EOS]",
    lambda dim: {"sigmoid_bias": torch.tensor([INITIAL_BIAS])},
    citation=(SIGLIP,),
)
TOKEN_WISE_SIGMOID = Term(
    compute_token_wise,
    "tokens",
    token_wise_memory,
    "sigmoid of the token-wise maximum similarity",
    lambda dim: {"token_wise_sigmoid_bias": torch.tensor([INITIAL_BIAS])},
    citation=(SIGLIP, FILIP),
)


class SigmoidOutput(NamedTuple):
    """Scalars. ``loss`` carries the gradient; ``accuracy``: the share of rows with a positive as best item."""

    loss: Tensor
    accuracy: Tensor


def sigmoid_loss(
    similarity: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    offset: int = 0,
    ids: Tensor | None = None,
    all_ids: Tensor | None = None,
) -> SigmoidOutput:
    """Compute the equation above for an existing ``similarity`` [b, N], such as s^I or the transpose of s^T.

    ``logit_scale`` and ``logit_bias`` have one element each. ``offset``, ``ids`` and ``all_ids`` as in
    :func:`contrastive_loss`: where the rank's items are among the N, and which are each other's positives. The sum over
    all columns is divided by the b rows, so that the mean over ranks of equal b is the loss of one process.
    """
    wide = accumulation_dtype(similarity.dtype)
    if ids is None:
        own = torch.arange(len(similarity), device=similarity.device) + offset
        positives = own[:, None] == torch.arange(similarity.shape[1], device=similarity.device)
    else:
        positives = ids[:, None] == (ids if all_ids is None else all_ids)
    with torch.autocast(similarity.device.type, enabled=False):
        logits = logit_scale.to(wide).reshape(()) * similarity.to(wide) + logit_bias.to(wide).reshape(())
        loss = F.softplus(torch.where(positives, -logits, logits)).sum() / len(logits)
        best = similarity.detach().argmax(dim=1, keepdim=True)
        return SigmoidOutput(loss, positives.gather(1, best).to(wide).mean())
