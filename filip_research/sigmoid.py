"""SigLIP's loss (Zhai et al., 2023), on one vector per side and on the token-wise similarity.

    L = - 1/b  sum over own images i and all texts j of  log sigmoid(z_ij (t s_ij + c))

z_ij is 1 for positives (the own pair, or with soft targets all pairs of its group) and -1 otherwise. On tokens it is
the mean of this for s^I, by image, and for s^T, by text. The temperature is the one that all terms share, so it
starts at the model's ``init_temperature`` where SigLIP starts at 0.1; the bias c starts at -10 as in SigLIP.
open_clip's ``SigLipLoss`` counts the own pair alone as positive.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from filip.citations import FILIP, SIGLIP
from filip.train.losses import token_wise
from filip.train.losses.term import BatchShape, LossInput, Term, TermOutput
from filip_research.sigmoid_loss import distributed_sigmoid_loss, sigmoid_loss

INITIAL_BIAS = -10.0


def compute(batch: LossInput) -> TermOutput:
    """Compute the sigmoid loss over the cosine of all pairs of vectors, one rank's texts at a time."""
    found = distributed_sigmoid_loss(
        *batch.vectors,
        batch.encoded.logit_scale,
        batch.parameters["sigmoid_bias"],
        exchange=batch.settings.exchange,
        offset=batch.offset,
        ids=batch.positives,
        all_ids=batch.all_positives,
    )
    return TermOutput(found.loss, {"accuracy/i2t": found.accuracy, **_bias(batch, "sigmoid_bias")})


def compute_token_wise(batch: LossInput) -> TermOutput:
    """Compute the mean of the sigmoid losses over s^I and over s^T."""
    similarity, metrics = batch.once("token_wise", token_wise.token_wise_similarity)
    bias = batch.parameters["token_wise_sigmoid_bias"]
    i2t, t2i = (
        sigmoid_loss(
            matrix,
            batch.encoded.logit_scale,
            bias,
            offset=batch.offset,
            ids=batch.positives,
            all_ids=batch.all_positives,
        )
        for matrix in (similarity.i2t, similarity.t2i.T)
    )
    halves = {"loss/i2t": i2t.loss, "loss/t2i": t2i.loss, "accuracy/i2t": i2t.accuracy, "accuracy/t2i": t2i.accuracy}
    return TermOutput((i2t.loss + t2i.loss) / 2, halves | metrics | _bias(batch, "token_wise_sigmoid_bias"))


def _bias(batch: LossInput, name: str) -> dict[str, Tensor]:
    return {"optimizer/logit_bias": batch.parameters[name].mean()}


def chance(pairs: int) -> float:
    """Return the loss if every pair is answered with the share of positives, 1 / ``pairs``: about log(pairs) + 1."""
    return math.log(pairs) - (pairs - 1) * math.log1p(-1 / pairs) if pairs > 1 else 0.0


def memory(shape: BatchShape) -> float:
    """Return the bytes of this rank's vectors with gradients in float32, all texts and two blocks of similarities."""
    texts = shape.setting.global_batch if shape.exchange == "gather" else 4 * shape.pairs
    return shape.pairs * 2 * shape.dim * 8 + texts * shape.dim * 8 + 2 * 4 * shape.pairs**2


SIGMOID = Term(
    compute,
    "vectors",
    chance,
    memory,
    "sigmoid of the cosine of [CLS] and [EOS]",
    lambda dim: {"sigmoid_bias": torch.tensor([INITIAL_BIAS])},
    exchanged=("vectors",),
    citation=(SIGLIP,),
)
TOKEN_WISE_SIGMOID = Term(
    compute_token_wise,
    "tokens",
    chance,
    token_wise.memory,
    "sigmoid of the token-wise maximum similarity",
    lambda dim: {"token_wise_sigmoid_bias": torch.tensor([INITIAL_BIAS])},
    exchanged=("tokens",),
    own_shapes=True,
    citation=(SIGLIP, FILIP),
)
