"""The engine as the scorer of ColBERT-type libraries: sentence-transformers, PyLate, colpali_engine.

    score[q, d] = sum over the tokens of q of the largest dot product with a token of d        (MaxSim)

is ``late_interaction`` in one direction: queries in the role of images, their masked tokens set to zero (a zero adds
nothing to the sum), documents packed, and ``i2t`` times the number of query positions. These libraries take a scorer
as a function, or (colpali) call one by a name that can be replaced; docs/interaction.md shows each. None of them is
imported until it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from filip.interaction.dispatch import late_interaction

EMPTY_DOCUMENT_SCORE = -1e9  # as in sentence-transformers: below every score that a document can have


def colbert_scores(
    queries_embeddings: Tensor,
    documents_embeddings: Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
    *,
    length_normalize: bool = False,
    backend: str = "auto",
) -> Tensor:
    """MaxSim of every query with every document, differentiable: the ``similarity_fct`` of sentence-transformers'
    losses, the ``score_metric`` of PyLate's ``Contrastive``.

    Arguments
        queries_embeddings    [queries, n1, d]
        documents_embeddings  [documents, n2, d], or [groups, N, n2, d]: N documents of each query, the first of them
                              the positive one
        queries_mask          [queries, n1], documents_mask [documents, n2] or [groups, N, n2]; what is not 0 (or False)
                              takes part. Valid tokens may lie anywhere. None: rows of zeros are padding
        length_normalize      divide each score by the number of the query's tokens that take part
        backend               as in :func:`late_interaction`

    Returns [queries, documents], for groups [queries, groups * N] with document k of group j in column j * N + k;
    float32 (float64 for float64 tokens). Gradients arrive in the dtype of the tokens.
    Padding takes part in nothing. A document without a token scores -1e9, as in sentence-transformers.
    Raises ValueError for shapes that do not match.
    """
    documents_mask = _mask(documents_embeddings, documents_mask, "documents_mask").flatten(0, -2)
    queries_mask = _mask(queries_embeddings, queries_mask, "queries_mask")
    documents = documents_embeddings.flatten(0, -3)
    empty = ~documents_mask.any(dim=1)
    kept = documents_mask.clone()
    kept[:, 0] |= empty  # a stand-in, whose score is overwritten below
    queries = queries_embeddings.masked_fill(~queries_mask[..., None], 0)
    found = late_interaction(queries, documents[kept], kept.sum(dim=1), backend=backend).i2t
    scores = (found * queries.shape[1]).masked_fill(empty, EMPTY_DOCUMENT_SCORE)
    if length_normalize:
        scores = scores / queries_mask.sum(dim=1).clamp_min(1)[:, None]
    return scores


def mean_colbert_scores(
    queries_embeddings: Tensor,
    documents_embeddings: Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
    *,
    length_normalize: bool = True,
    backend: str = "auto",
) -> Tensor:
    """:func:`colbert_scores` divided by the query's number of tokens: with captions as queries FILIP's s^T."""
    return colbert_scores(
        queries_embeddings,
        documents_embeddings,
        queries_mask,
        documents_mask,
        length_normalize=length_normalize,
        backend=backend,
    )


def use_in_colpali() -> Callable[[], None]:
    """Let colpali_engine's losses and its processors' ``score_multi_vector`` score with :func:`colbert_scores`.

    They take no scorer as an argument, so ``maxsim_inbatch`` is replaced in the two modules that call it, in this
    process. Returns a function that puts colpali's own back. ImportError if colpali_engine is not installed.
    Zero rows are padding, as in colpali; unlike there they never win a maximum. Smooth maxima and explicit
    negatives (``maxsim_kd``) stay colpali's.
    """
    from colpali_engine.loss import late_interaction_losses
    from colpali_engine.utils import processing_utils

    modules = (late_interaction_losses, processing_utils)
    before = [module.maxsim_inbatch for module in modules]

    def set_scorers(scorers: list[Callable[[Tensor, Tensor], Tensor]]) -> None:
        for module, scorer in zip(modules, scorers, strict=True):
            module.maxsim_inbatch = scorer

    set_scorers([colbert_scores] * len(modules))
    return lambda: set_scorers(before)


def _mask(embeddings: Tensor, mask: Tensor | None, name: str) -> Tensor:
    """``mask`` as booleans, made of the rows that are not zero if it is None."""
    if mask is None:
        return embeddings.detach().any(dim=-1)
    if mask.shape != embeddings.shape[:-1]:
        raise ValueError(
            f"{name} is {list(mask.shape)}, but its embeddings are {list(embeddings.shape)}: one entry a token"
        )
    return mask.to(device=embeddings.device, dtype=torch.bool)
