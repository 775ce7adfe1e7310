"""Use the engine as the scorer of ColBERT-type libraries: sentence-transformers, PyLate and colpali-engine.

    score[q, d] = sum over the tokens of q of the largest dot product with a token of d        (MaxSim)

is ``late_interaction`` in one direction: queries in the role of images, both sides packed, and ``i2t`` times the number
of the query's tokens. ``patch_sentence_transformers()`` and its two siblings let everything in a library score so;
where it takes a scorer as an argument, pass one of the functions.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

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
    Padding takes part in nothing. A document without a token scores -1e9 before the division, as in
    sentence-transformers.
    Raises ValueError for shapes that do not match.
    """
    queries_mask, counts, _ = _usable(_mask(queries_embeddings, queries_mask, "queries_mask"))
    documents_mask, _, empty = _usable(_mask(documents_embeddings, documents_mask, "documents_mask").flatten(0, -2))
    documents = documents_embeddings.flatten(0, -3)
    means = late_interaction(
        queries_embeddings, documents, documents_mask, image_mask=queries_mask, backend=backend
    ).i2t
    return _sums(means, counts, empty, length_normalize)


def mean_colbert_scores(*embeddings_and_masks: Tensor | None, length_normalize: bool = True, **others: Any) -> Tensor:
    """Divide :func:`colbert_scores` by the query's number of tokens: with captions as queries FILIP's s^T."""
    return colbert_scores(*embeddings_and_masks, length_normalize=length_normalize, **others)  # type: ignore[arg-type]


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
    :func:`colbert_scores`. Only these pairs are multiplied.
    """
    queries_mask, counts, _ = _usable(_mask(queries_embeddings, queries_mask, "queries_mask"))
    documents_mask, _, empty = _usable(_mask(documents_embeddings, documents_mask, "documents_mask").flatten(0, 1))
    own = torch.arange(len(documents_mask)).view(documents_embeddings.shape[:2])
    if len(own) != len(counts):
        raise ValueError(f"{len(counts)} queries, but documents of {len(own)} queries: give each query its own")
    sides = queries_embeddings, documents_embeddings.flatten(0, 1), documents_mask
    means = late_interaction_pairs(*sides, own // own.shape[1], own, image_mask=queries_mask).i2t
    return _sums(means, counts, empty.view(means.shape), length_normalize)


def patch_sentence_transformers() -> None:
    """Let sentence-transformers 6 score by the engine: losses, evaluators and ``model.similarity``."""
    _replace(
        "sentence_transformers.util.similarity",
        _maxsim_score_documents=colbert_scores,
        _maxsim_score_pairs=_aligned_scores,
    )


def patch_pylate() -> None:
    """Let PyLate 1.6 score by the engine, unless ``PYLATE_SCORES_BACKEND`` names another one.

    Where all similarities are negative a masked token wins with 0 in PyLate, but not here.
    """
    _replace(
        "pylate.scores._lik_backend",
        colbert_scores_lik=colbert_scores,
        colbert_scores_pairwise_lik=_aligned_scores,
        colbert_kd_scores_lik=colbert_kd_scores,
    )
    scores = importlib.import_module("pylate.scores.colbert")
    theirs = scores._try_lik

    def ours(backend: str, *tensors: Any) -> bool:
        return (backend == "auto" and all(isinstance(t, Tensor) for t in tensors)) or bool(theirs(backend, *tensors))

    scores._try_lik = ours  # type: ignore[attr-defined]


def patch_colpali_engine() -> None:
    """Let colpali-engine 0.3.18 score by the engine wherever it would by an einsum."""
    _replace("colpali_engine.utils.maxsim", _torch_maxsim=colbert_scores, _torch_maxsim_kd=colbert_kd_scores)


def _replace(module: str, **scorers: Callable[..., Tensor]) -> None:
    """Put scorers in the place of those of ``module``, which keep what the engine does not take.

    Raises ImportError where there is none of that name.
    """
    target = importlib.import_module(module)
    for name, scorer in scorers.items():
        theirs = getattr(target, name, None)
        if theirs is None:
            raise ImportError(
                f"{module} has no {name}: this version of late-interaction knows sentence-transformers 6.2, PyLate 1.6 "
                "and colpali-engine 0.3.18; pass a scorer of late_interaction.adapters where the library takes one"
            )
        setattr(target, name, _in_place_of(theirs, scorer))


def _in_place_of(theirs: Callable[..., Tensor], scorer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``scorer`` with these libraries' masks: None is every token. An empty document stays theirs."""

    @functools.wraps(theirs)
    def score(queries: Tensor, documents: Tensor, *masks: Tensor | None, **named: Tensor | None) -> Tensor:
        given = *masks, named.get("queries_mask"), named.get("documents_mask")
        both = zip((queries, documents), given, strict=False)
        every = [t.new_ones(t.shape[:-1], dtype=torch.bool) if mask is None else mask for t, mask in both]
        if torch.compiler.is_compiling() or not (queries.numel() and documents.numel() and every[1].any(-1).all()):
            return theirs(queries, documents, *masks, **named)
        return scorer(queries, documents, *every).float()

    return score


def _aligned_scores(queries: Tensor, documents: Tensor, queries_mask: Tensor, documents_mask: Tensor) -> Tensor:
    """Return MaxSim [b] of each query with the document beside it."""
    return colbert_kd_scores(queries, documents[:, None], queries_mask, documents_mask[:, None])[:, 0]


class MultiVectorSymmetricLoss(nn.Module):
    """Train a ``MultiVectorEncoder`` of sentence-transformers by both directions of one product, as FILIP does.

    The columns of a batch are queries, their documents, and any number of negatives for each query. The loss is the
    mean of two cross-entropies: of each query over all documents by s^I, and of each positive document over all queries
    by s^T. ``scale`` multiplies the means over tokens, which are cosines; ``temperature`` is that of the smooth
    maximum, 0 takes the maximum.

        model = MultiVectorEncoder("answerdotai/ModernBERT-base")
        pairs = Dataset.from_dict({"query": questions, "document": answers})
        MultiVectorEncoderTrainer(model, train_dataset=pairs, loss=MultiVectorSymmetricLoss(model)).train()
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
        maximum = SmoothMaximum(self.temperature) if self.temperature else None
        i2t, t2i = late_interaction(queries, documents, lengths, image_mask=queries_mask, maximum=maximum)
        pairs = torch.arange(len(queries), device=queries.device)
        of_documents = t2i[:, : len(queries)].T
        return (F.cross_entropy(self.scale * i2t, pairs) + F.cross_entropy(self.scale * of_documents, pairs)) / 2


def _usable(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``mask`` [items, n] with a stand-in where an item has no token, counts [items, 1], and which have none."""
    counts = mask.sum(dim=1, keepdim=True)
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    return mask | ((counts == 0) & first), counts, counts[:, 0] == 0


def _sums(means: Tensor, counts: Tensor, empty: Tensor, length_normalize: bool) -> Tensor:
    """Return ``means`` [q, ...] over a query's tokens as sums, or as they are; 0 for a query without a token."""
    scores = (means * counts).masked_fill(empty, EMPTY_DOCUMENT_SCORE)
    return scores / counts.clamp(min=1) if length_normalize else scores


def _mask(embeddings: Tensor, mask: Tensor | None, name: str) -> Tensor:
    """Return ``mask`` as booleans; if it is None, make one of the rows that are not zero."""
    if mask is None:
        return embeddings.detach().any(dim=-1)
    if mask.shape != embeddings.shape[:-1]:
        raise ValueError(
            f"{name} is {list(mask.shape)}, but its embeddings are {list(embeddings.shape)}: one entry a token"
        )
    return mask.to(device=embeddings.device, dtype=torch.bool)
