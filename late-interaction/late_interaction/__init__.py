"""Compute late interaction exactly, on all tokens, at close to the cost of the matrix product.

    similarity = late_interaction(image_tokens, text_tokens, text_lengths)    # s^I and s^T
    output = contrastive_loss(similarity, logit_scale)

One function with several exact backends. It is the base of the forms for many ranks and of the scorer for evaluation.
``late_interaction.grad_cache`` is for batches beyond the memory, ``late_interaction.token_selection`` for a part of the
tokens, ``late_interaction.retrieval`` for a search, ``late_interaction.adapters`` for other libraries.
"""

from late_interaction.backends import SmoothMaximum
from late_interaction.collectives import use_host_group
from late_interaction.distributed import distributed_late_interaction, distributed_pooled_similarity, gather_ids
from late_interaction.loss import ContrastiveOutput, contrastive_loss, pooled_similarity
from late_interaction.module import LateInteractionLoss
from late_interaction.operator import late_interaction
from late_interaction.packing import Similarity, pack_tokens
from late_interaction.pairs import late_interaction_pairs
from late_interaction.scoring import score

__version__ = "0.1.0"
__all__ = [
    "ContrastiveOutput",
    "LateInteractionLoss",
    "Similarity",
    "SmoothMaximum",
    "contrastive_loss",
    "distributed_late_interaction",
    "distributed_pooled_similarity",
    "gather_ids",
    "late_interaction",
    "late_interaction_pairs",
    "pack_tokens",
    "pooled_similarity",
    "score",
    "use_host_group",
]
