"""FILIP's loss: each patch with its best word, each word with its best patch (Yao et al., 2022, equations 4 to 6)."""

from __future__ import annotations

import math

from filip.interaction import distributed_late_interaction, select_tokens
from filip.interaction.cost import fused
from filip.train.losses.term import BatchShape, LossInput, Term, TermOutput, transport_dtype


def compute(batch: LossInput) -> TermOutput:
    """Cross-entropy over the token-wise maximum similarity of all pairs."""
    settings = batch.settings
    image, text = batch.tokens
    images, texts, lengths = select_tokens(image, *text, settings.token_keep_ratio)
    similarity = distributed_late_interaction(
        images,
        texts,
        lengths,
        exchange=settings.exchange,
        transport_dtype=transport_dtype(settings),
        backend=settings.backend,
    )
    return batch.cross_entropy(similarity)


def memory(shape: BatchShape) -> float:
    """Own tokens and their gradients in float32, and what the interaction allocates."""
    tokens = shape.pairs * (shape.patches + shape.words) * shape.dim * 8
    return tokens + fused(shape.setting, shape.exchange).memory


TOKEN_WISE = Term(compute, "tokens", math.log, memory, "token-wise maximum similarity")
