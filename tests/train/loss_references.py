"""The terms of the loss written out from their papers, pair by pair, in float64: what the tests compare with."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.train.loss_batches import Batch

Matrices = tuple[Tensor, Tensor]  # s^I and s^T [images, texts]
Maximum = Callable[[Tensor], Tensor]  # over the last dimension


def token_wise_matrices(batch: Batch, maximum: Maximum = lambda similarity: similarity.max(dim=-1)[0]) -> Matrices:
    pairs = [[image @ caption.T for caption in batch.captions()] for image in batch.image]
    i2t = [torch.stack([maximum(s).mean() for s in row]) for row in pairs]
    t2i = [torch.stack([maximum(s.T).mean() for s in row]) for row in pairs]
    return torch.stack(i2t), torch.stack(t2i)


def cross_entropy(i2t: Tensor, t2i: Tensor, batch: Batch) -> Tensor:
    """Compute CLIP's loss, with the target 1 / #positives for each positive."""
    target = batch.positives().double()
    target = target / target.sum(dim=1, keepdim=True)
    halves = [-(target * F.log_softmax(batch.scale * s, dim=1)).sum(dim=1).mean() for s in (i2t, t2i.T)]
    return (halves[0] + halves[1]) / 2


def token_wise(batch: Batch) -> Tensor:
    return cross_entropy(*token_wise_matrices(batch), batch)


def pooled(batch: Batch) -> Tensor:
    similarity = batch.image_vector @ batch.text_vector.T
    return cross_entropy(similarity, similarity, batch)


CORE: dict[str, Callable[[Batch], Tensor]] = {"token_wise": token_wise, "pooled": pooled}
