"""Tell which tokens of its vocabulary a model has learned anything about."""

from __future__ import annotations

import torch
from torch import Tensor


def taught(embedding: Tensor) -> Tensor:
    """Return bool ``[tokens]``: which rows of a token embedding differ from what they were initialised with.

    Most tokens of CLIP's vocabulary never occur in a small training, and an optimiser scales their rows at most, all by
    one factor (weight decay). So they are still draws from one normal distribution, whose norms spread by
    1 / sqrt(2 width) of their mean; a row that has been trained lies outside. If most rows are not alike in this way,
    as in a model trained on everything, all count as taught.
    """
    norms = embedding.detach().float().norm(dim=1)
    if float(norms.median()) == 0:  # a compact file, which leaves them out
        return norms > 0
    spread = (2 * embedding.shape[1]) ** -0.5
    distance = (norms / norms.median().clamp(min=1e-12) - 1).abs()
    alike = distance < 4.5 * spread
    measured = float(distance[alike].square().mean().sqrt())
    if alike.float().mean() < 0.5 or not 0.7 * spread < measured < 1.4 * spread:
        return torch.ones(len(norms), dtype=torch.bool)
    return ~alike
