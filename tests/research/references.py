"""The terms of filip_research written out from their papers, pair by pair, in float64."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.train.loss_batches import Batch
from tests.train.loss_references import Maximum, cross_entropy, hard_maximum, token_wise_matrices


def hard_negatives(batch: Batch, margin: float = 0.1) -> Tensor:
    i2t, t2i = token_wise_matrices(batch)
    resemblance = (batch.text_vector @ batch.text_vector.T).detach()
    added = margin * resemblance * ~batch.positives()
    return cross_entropy(i2t + added, t2i + added.T, batch)


def with_altered(batch: Batch, maximum: Maximum) -> tuple[Tensor, Tensor]:
    """Return FILIP's loss, and what it gains where an image also chooses against its own altered caption."""
    i2t, t2i = token_wise_matrices(batch, maximum)
    positive = batch.positives().double()
    target = positive / positive.sum(dim=1, keepdim=True)
    plain, gained = cross_entropy(i2t, t2i, batch), torch.zeros((), dtype=torch.float64)
    altered = batch.further.split(batch.further_lengths.tolist())
    for i, image in enumerate(batch.image):
        if len(altered[i]):
            logits = batch.scale * i2t[i]
            wrong = batch.scale * maximum(image @ altered[i].T).mean()
            for chosen in (logits, torch.cat([logits, wrong])):
                sign = 1 if len(chosen) == len(logits) else -1
                gained = gained + sign * (target[i] * F.log_softmax(chosen, dim=0)[: len(i2t)]).sum()
    return plain, gained / len(i2t)


def swapped_words(batch: Batch, maximum: Maximum = hard_maximum) -> Tensor:
    """Let an image choose among all captions and its own swapped one, a caption among all images."""
    plain, gained = with_altered(batch, maximum)
    return plain + gained / 2


def exchanged_nouns(batch: Batch) -> Tensor:
    """Do the same with one vector a side."""
    cosine = batch.image_vector @ batch.text_vector.T
    loss = cross_entropy(cosine, cosine, batch)
    target = batch.positives().double() / batch.positives().sum(dim=1, keepdim=True)
    for i, altered in enumerate(batch.further.split(batch.further_lengths.tolist())):
        if len(altered):
            logits = batch.scale * torch.cat([cosine[i], (altered @ batch.image_vector[i]).max()[None]])
            more = target[i] * (logits[:-1].log_softmax(dim=0) - logits.log_softmax(dim=0)[:-1])
            loss = loss + more.sum() / 2 / len(batch.image)
    return loss


RESEARCH: dict[str, Callable[[Batch], Tensor]] = {
    "hard_negatives": hard_negatives,
    "swapped_words": swapped_words,
    "exchanged_nouns": exchanged_nouns,
}
