"""A narrower embedding space for the tokens of a trained model, fitted to a sample of them.

Vectors f of unit length are replaced by P f, with orthonormal rows in P [k, d], and normalised again. P holds the k
principal directions of the sample: of all such P, those that lose the least of f, E |f - P'P f|^2 (Eckart and Young).
Both towers share P, so an image token and a word that were equal stay so.

The best fit of rank k to the *products* f . g of images with texts gives each side its own map. It is worse
(bench/studies/low_rank.py measures both): its maps stretch, and what is compared are vectors that were normalised
again.
"""

from __future__ import annotations

import torch
from torch import Tensor


def second_moment(tokens: Tensor) -> Tensor:
    """Return the mean of f f' [d, d] over ``tokens`` [n, d], float64.

    It is not centred: a projection without bias keeps no mean.
    """
    wide = tokens.double()
    return wide.T @ wide / len(wide)


def principal_directions(moment: Tensor, rank: int) -> Tensor:
    """Return the ``rank`` eigenvectors of a second moment [d, d] with the largest eigenvalues.

    They are rows [rank, d], float64.
    """
    return torch.linalg.eigh(moment).eigenvectors.T.flip(0)[:rank].contiguous()
