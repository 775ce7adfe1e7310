"""CLIP's loss: one vector per image and caption (Radford et al., 2021).

Together with ``token_wise`` it reads [CLS] and [EOS] through the projections that all tokens go through. SPARC (Bica et
al., 2024) found the token-wise loss alone unstable at scale, and stable with this term added.
"""

from __future__ import annotations

import math

from filip.common.citations import CLIP
from filip.train.losses.term import SOFTMAX_BYTES, BatchShape, LossInput, Term, TermOutput
from late_interaction import distributed_pooled_similarity


def compute(batch: LossInput) -> TermOutput:
    """Compute the cross-entropy over the cosine of all pairs of vectors."""
    return batch.cross_entropy(distributed_pooled_similarity(*batch.vectors))


def memory(shape: BatchShape) -> float:
    """Return the bytes of this rank's vectors with gradients in float32, of all ranks' vectors, and of the soft-max."""
    step = shape.setting
    gathered = 2 * step.global_batch * shape.dim * step.token_bytes
    return shape.pairs * 2 * shape.dim * 8 + gathered + SOFTMAX_BYTES * step.local * step.global_batch


POOLED = Term(compute, "vectors", math.log, memory, "cosine of [CLS] and [EOS]", citation=(CLIP,))
