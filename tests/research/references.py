"""The terms of filip_research written out from their papers, pair by pair, in float64."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.train.loss_batches import Batch
from tests.train.loss_references import cross_entropy


def exchanged_nouns(batch: Batch) -> Tensor:
    """Let an image choose among all captions and its own altered one, a caption among all images."""
    cosine = batch.image_vector @ batch.text_vector.T
    loss = cross_entropy(cosine, cosine, batch)
    target = batch.positives().double() / batch.positives().sum(dim=1, keepdim=True)
    for i, altered in enumerate(batch.further.split(batch.further_lengths.tolist())):
        if len(altered):
            logits = batch.scale * torch.cat([cosine[i], (altered @ batch.image_vector[i]).max()[None]])
            more = target[i] * (logits[:-1].log_softmax(dim=0) - logits.log_softmax(dim=0)[:-1])
            loss = loss + more.sum() / 2 / len(batch.image)
    return loss


RESEARCH: dict[str, Callable[[Batch], Tensor]] = {"exchanged_nouns": exchanged_nouns}
