"""Use the engine as the scorer of ColBERT-type libraries: sentence-transformers and PyLate.

    score[q, d] = sum over the tokens of q of the largest dot product with a token of d        (MaxSim)

is ``late_interaction`` in one direction: queries in the role of images, both sides packed, and ``i2t`` times the number
of the query's tokens. These libraries take a scorer as a function, or by a patch in contrib/; docs/interaction.md shows
each. None of them is imported here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from late_interaction.backends import SmoothMaximum
from late_interaction.operator import late_interaction
from late_interaction.pairs import late_interaction_pairs

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
    """Compute MaxSim of every query with every document, differentiable.

    It is the ``similarity_fct`` of sentence-transformers' losses, the ``score_metric`` of PyLate's ``Contrastive``.

    Arguments
        queries_embeddings    [queries, n1, d]
        documents_embeddings  [documents, n2, d], or [groups, N, n2, d]: N documents of each query, the first of them
                              the positive one
        queries_mask          [queries, n1], documents_mask [documents, n2] or [groups, N, n2]; what is not 0 (or False)
                              takes part. Valid tokens may be anywhere. None: rows of zeros are padding
        length_normalize      divide each score by the number of the query's tokens that take part
        backend               as in :func:`late_interaction`

    Returns [queries, documents], for groups [queries, groups * N] with document k of group j in column j * N + k;
    float32 (float64 for float64 tokens). Gradients arrive in the dtype of the tokens.
    Padding takes part in nothing. A document without a token scores -1e9, as in sentence-transformers.
    Raises ValueError for shapes that do not match.
    """
    packed = _pack(queries_embeddings, documents_embeddings, queries_mask, documents_mask)
    means = late_interaction(*packed.tokens, image_mask=packed.queries_mask, backend=backend).i2t
    return packed.scores(means, packed.empty, length_normalize)


def mean_colbert_scores(
    queries_embeddings: Tensor,
    documents_embeddings: Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
    *,
    length_normalize: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Divide :func:`colbert_scores` by the query's number of tokens: with captions as queries FILIP's s^T."""
    return colbert_scores(
        queries_embeddings,
        documents_embeddings,
        queries_mask,
        documents_mask,
        length_normalize=length_normalize,
        backend=backend,
    )


def colbert_kd_scores(
    queries_embeddings: Tensor,
    documents_embeddings: Tensor,
    queries_mask: Tensor | None = None,
    documents_mask: Tensor | None = None,
    *,
    length_normalize: bool = False,
) -> Tensor:
    """Compute MaxSim of each query with its own documents: the scorer of both libraries' distillation losses.

    queries_embeddings [b, n1, d], documents_embeddings [b, N, n2, d]; returns [b, N]. All else is as in
    :func:`colbert_scores`. Nothing that covers all pairs is saved here: this is plain PyTorch without the padding.
    """
    packed = _pack(queries_embeddings, documents_embeddings, queries_mask, documents_mask)
    of_query = torch.arange(packed.empty.numel()).view(documents_embeddings.shape[:2])
    queries = torch.arange(len(of_query))[:, None].expand_as(of_query)
    means = late_interaction_pairs(*packed.tokens, queries, of_query, image_mask=packed.queries_mask).i2t
    return packed.scores(means, packed.empty.view(means.shape), length_normalize)


class MultiVectorSymmetricLoss(nn.Module):
    """Train a ``MultiVectorEncoder`` of sentence-transformers by both directions of one product, as FILIP does.

    The columns of a batch are queries, their documents, and any number of negatives for each query. The loss is the
    mean of two cross-entropies: of each query over all documents by s^I, and of each positive document over all queries
    by s^T. ``scale`` multiplies the means over tokens, which are cosines; ``temperature`` is that of the smooth
    maximum, 0 takes the maximum.
    """

    def __init__(self, model: nn.Module, scale: float = 20.0, temperature: float = 0.05) -> None:
        super().__init__()
        self.model, self.scale, self.temperature = model, scale, temperature

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings for the model card."""
        return {"scale": self.scale, "temperature": self.temperature}

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor | None = None) -> Tensor:
        """Return the loss of columns of features, the queries first."""
        outputs = [
            self.model(dict(column), task=column.get("task", "document" if place else "query"))
            for place, column in enumerate(sentence_features)
        ]
        tokens, masks = ([output[key] for output in outputs] for key in ("token_embeddings", "attention_mask"))
        queries, queries_mask, masks = tokens[0], masks[0].bool(), [mask.bool() for mask in masks[1:]]
        documents = torch.cat([column[mask] for column, mask in zip(tokens[1:], masks, strict=True)])
        lengths = torch.cat([mask.sum(dim=1) for mask in masks])
        backend = SmoothMaximum(self.temperature) if self.temperature else "auto"
        i2t, t2i = late_interaction(queries, documents, lengths, image_mask=queries_mask, backend=backend)
        pairs = torch.arange(len(queries), device=queries.device)
        of_documents = t2i[:, : len(queries)].T
        return (F.cross_entropy(self.scale * i2t, pairs) + F.cross_entropy(self.scale * of_documents, pairs)) / 2


class _Packed(NamedTuple):
    """The tokens of both sides, as :func:`late_interaction` takes them. An item without a token has a stand-in."""

    tokens: tuple[Tensor, Tensor, Tensor]  # queries [q, n1, d], the documents' packed, their lengths
    queries_mask: Tensor  # [q, n1]
    counts: Tensor  # [q, 1] tokens of each query
    empty: Tensor  # [documents] whether one has no token

    def scores(self, means: Tensor, empty: Tensor, length_normalize: bool) -> Tensor:
        """Return ``means`` [q, ...] over a query's tokens as sums, or as they are; 0 for a query without a token."""
        scores = (means * self.counts).masked_fill(empty, EMPTY_DOCUMENT_SCORE)
        return scores / self.counts.clamp(min=1) if length_normalize else scores


def _pack(queries: Tensor, documents: Tensor, queries_mask: Tensor | None, documents_mask: Tensor | None) -> _Packed:
    queries_mask = _mask(queries, queries_mask, "queries_mask")
    documents_mask = _mask(documents, documents_mask, "documents_mask").flatten(0, -2)
    counts, lengths = queries_mask.sum(dim=1, keepdim=True), documents_mask.sum(dim=1)
    first = torch.arange(queries_mask.shape[1], device=queries.device) == 0
    queries_mask = queries_mask | ((counts == 0) & first)
    first = torch.arange(documents_mask.shape[1], device=documents.device) == 0
    packed = documents.flatten(0, -3)[documents_mask | ((lengths == 0)[:, None] & first)]
    return _Packed((queries, packed, lengths.clamp(min=1)), queries_mask, counts, lengths == 0)


def _mask(embeddings: Tensor, mask: Tensor | None, name: str) -> Tensor:
    """Return ``mask`` as booleans; if it is None, make one of the rows that are not zero."""
    if mask is None:
        return embeddings.detach().any(dim=-1)
    if mask.shape != embeddings.shape[:-1]:
        raise ValueError(
            f"{name} is {list(mask.shape)}, but its embeddings are {list(embeddings.shape)}: one entry a token"
        )
    return mask.to(device=embeddings.device, dtype=torch.bool)
