"""CLIP's loss: one vector per image and caption (Radford et al., 2021).

Together with ``token_wise`` it reads [CLS] and [EOS] through the projections that all tokens go through. SPARC (Bica et
al., 2024) found the token-wise loss alone unstable at scale, and stable with this term added.
"""

from __future__ import annotations

import math
from dataclasses import replace

from filip.citations import CLIP
from filip.train.cost import clip
from filip.train.losses.term import BatchShape, LossInput, Term, TermOutput
from late_interaction import distributed_pooled_similarity


def compute(batch: LossInput) -> TermOutput:
    """Compute the cross-entropy over the cosine of all pairs of vectors."""
    return batch.cross_entropy(distributed_pooled_similarity(*batch.vectors))


def memory(shape: BatchShape) -> float:
    """Return the bytes of this rank's vectors with gradients in float32, and of two matrices of logits with theirs."""
    return shape.pairs * 2 * shape.dim * 8 + clip(replace(shape.setting, dim=shape.dim // 2)).memory


POOLED = Term(
    compute, "vectors", math.log, memory, "cosine of [CLS] and [EOS]", exchanged=("vectors",), citation=(CLIP,)
)
