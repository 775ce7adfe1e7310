"""Two-stage ranking for token-wise models: a cheap shortlist, then exact scores for the shortlist only.

The shortlist comes from mean vectors: one product of [images, d] with [d, texts]. It is an approximation: its loss
against exact ranking is measured and reported.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.errors import UserError
from filip.eval.scorer import Scorer, Texts, ranking
from filip.interaction import Similarity
from filip.progress import track


def rerank(
    scorer: Scorer,
    images: Tensor,
    for_texts: Texts,
    for_images: Texts,
    candidates: int,
    rank_texts_by: str,
    rank_images_by: str,
) -> tuple[Tensor, Tensor]:
    """Return exact scores for each query's ``candidates`` best candidates of a cheap first pass, -inf for all others.

    images: [n, n1, d] tokens. for_texts, for_images: encoded texts when ranking texts, and when ranking
    images. rank_*_by: "image" (s^I), "text" (s^T) or "mean".
    Returns (what ranks texts, what ranks images), both [images, texts].
    Raises UserError for a pooled model (exact is already one product) and for a shortlist under 10.
    """
    if not scorer.token_wise:
        raise UserError("shortlist= is for token-wise models; a pooled model's exact ranking is one product")
    if candidates < 10:
        raise UserError(f"shortlist={candidates}: R@10 needs a shortlist of at least 10")
    cheap = ranking(shortlist_scores(images, for_texts), rank_texts_by)
    rows = cheap.topk(min(candidates, len(for_texts)), dim=1).indices
    texts = torch.full((len(images), len(for_texts)), -torch.inf)
    for i, chosen in enumerate(track(rows, "re-ranking texts", "images")):
        similarity = scorer.similarity(images[i : i + 1], for_texts.select(chosen))
        texts[i, chosen] = ranking(similarity, rank_texts_by)[0]
    cheap = ranking(shortlist_scores(images, for_images), rank_images_by)
    columns = cheap.topk(min(candidates, len(images)), dim=0).indices.T
    pictures = torch.full_like(texts, -torch.inf)
    for j, chosen in enumerate(track(columns, "re-ranking images", "texts")):
        similarity = scorer.similarity(images[chosen.to(images.device)], for_images.select(torch.tensor([j])))
        pictures[chosen, j] = ranking(similarity, rank_images_by)[:, 0]
    return texts, pictures


def shortlist_scores(images: Tensor, texts: Texts) -> Similarity:
    """Compute the cheap first pass: cosines of mean vectors [images, texts], the same both ways, on the CPU."""
    assert texts.lengths is not None
    owner = torch.repeat_interleave(torch.arange(len(texts)), texts.lengths.cpu()).to(texts.values.device)
    summed = texts.values.new_zeros(len(texts), texts.values.shape[1], dtype=torch.float32)
    summed.index_add_(0, owner, texts.values.float())
    product = (F.normalize(images.float().mean(1), dim=-1) @ F.normalize(summed, dim=-1).T).cpu()
    return Similarity(product, product)
