"""A margin for captions that resemble one's own, as in HN-CLIP (2026, "Which negatives matter? Ask your text encoder").

    s'_ij = s_ij + m <t_i, t_j>   for every pair that is not a positive, and s_ij for positives

in both directions, and then CLIP's cross-entropy over the scaled s'. t are the unit vectors of the captions, taken
without gradient; m is the setting ``margin``. A caption close to the true one has to be beaten by m more than one about
something else, so that the loss does not vanish as soon as the easy negatives are told apart, as plain
cross-entropy does within an epoch of fine-tuning by the paper. m = 0 is the plain loss.

The similarity is the token-wise one, shared with ``token_wise``; HN-CLIP's is the cosine of two vectors. Its code was
not released: the form of the margin, added to the cosine before the scale, is from its description, and its exact
constants are unknown to us.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from filip.cli.command import option
from filip.train.losses.similarity import token_wise_memory, token_wise_similarity
from filip.train.losses.term import BatchShape, LossInput, Term, TermOutput
from late_interaction import Similarity, distributed_pooled_similarity


@dataclass
class Margin:
    """The setting of this term."""

    margin: float = option(
        0.1, "added to the similarity of a negative, times the cosine of its caption and one's own", at_least=0
    )


def compute(batch: LossInput) -> TermOutput:
    """Compute the cross-entropy over the token-wise similarity plus the margin.

    The accuracies include the margin.
    """
    similarity, metrics = batch.once("token_wise", token_wise_similarity)
    margin = batch.own.margin * caption_similarity(batch)
    hardened = Similarity(similarity.i2t + margin, similarity.t2i + margin.T)
    output = batch.cross_entropy(hardened)
    return TermOutput(output.loss, output.metrics | metrics)


@torch.no_grad()
def caption_similarity(batch: LossInput) -> Tensor:
    """Return the cosine of own captions with all ranks' captions [b, N]; 0 for positives."""
    vectors = batch.vectors.text
    cosine = distributed_pooled_similarity(vectors, vectors).i2t
    if batch.positives is None or batch.all_positives is None:
        rows = torch.arange(len(vectors), device=cosine.device)
        cosine[rows, batch.offset + rows] = 0
        return cosine
    return cosine.masked_fill(batch.positives[:, None] == batch.all_positives[None, :], 0)


def memory(shape: BatchShape) -> float:
    """Return the bytes of token_wise, plus one more matrix for each side with its gradient."""
    return token_wise_memory(shape) + 4 * 4 * shape.pairs * shape.setting.global_batch


HARD_NEGATIVES = Term(
    compute,
    "tokens and vectors",
    memory,
    "token-wise similarity with a margin for similar captions",
    settings=Margin,
    citation=("HN-CLIP: Which negatives matter? Ask your text encoder, 2026",),
)
