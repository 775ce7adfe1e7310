"""Late interaction: exact, on all tokens, at close to the price of the matrix product.

One function, ``late_interaction``, with several exact backends; the forms for many ranks, the contrastive
loss and the scorer for evaluation stand on it. Imports nothing of the rest of the project.
See docs/interaction.md for the design and its memory and flop count.
"""

from filip.interaction.dispatch import late_interaction, late_interaction_padded
from filip.interaction.distributed import (
    distributed_global_similarity,
    distributed_late_interaction,
    gather_ids,
)
from filip.interaction.keep import keep_tokens, token_scores
from filip.interaction.loss import ContrastiveOutput, add_global_term, contrastive_loss, global_similarity
from filip.interaction.packed import Similarity, pack_tokens
from filip.interaction.score import score

__all__ = [
    "ContrastiveOutput",
    "Similarity",
    "add_global_term",
    "contrastive_loss",
    "distributed_global_similarity",
    "distributed_late_interaction",
    "gather_ids",
    "global_similarity",
    "keep_tokens",
    "late_interaction",
    "late_interaction_padded",
    "pack_tokens",
    "score",
    "token_scores",
]
