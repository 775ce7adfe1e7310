"""The terms of filip_research written out from their papers, pair by pair, in float64."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.train.loss_batches import Batch
from tests.train.loss_references import Maximum, cross_entropy, hard_maximum, sigmoid_of, token_wise_matrices


def sparc(batch: Batch) -> Tensor:
    """Compute SPARC (Bica et al., 2024), equations 2 to 5, word by word."""
    total = torch.zeros((), dtype=torch.float64)
    for patches, caption in zip(batch.image, batch.captions(), strict=True):
        gathered = []
        for word in caption:
            similarity = patches @ word
            low, high = similarity.min(), similarity.max()
            if high == low:
                weights = torch.ones_like(similarity)
            else:
                scaled = (similarity - low) / (high - low)  # eq. 2
                weights = scaled * (scaled >= 1 / len(patches))  # eq. 3
            gathered.append((weights / weights.sum()) @ patches)  # eq. 4
        grouped = F.normalize(torch.stack(gathered), dim=1)
        for j in range(len(caption)):  # eq. 5
            by_group = F.log_softmax(batch.scale * (caption @ grouped[j]), dim=0)[j]
            by_word = F.log_softmax(batch.scale * (grouped @ caption[j]), dim=0)[j]
            total = total - (by_group + by_word) / (2 * len(caption))
    return total / len(batch.image)


def text_conditioned(batch: Batch) -> Tensor:
    """Compute FLAIR (Xiao et al., 2025): attention with an empty patch, then SigLIP's loss of a caption with what it
    sees."""
    query, key, value = (batch.parameters[f"text_conditioned_{name}"][0] for name in ("query", "key", "value"))
    rows = []
    for patches in batch.image:
        row = []
        for caption in batch.text_vector:
            padded = torch.cat([patches, torch.zeros(1, patches.shape[1], dtype=patches.dtype)])
            scores = (padded @ key.T) @ (query @ caption) / len(caption) ** 0.5
            seen = scores.softmax(dim=0) @ (padded @ value.T)
            row.append(F.normalize(seen, dim=0) @ caption)
        rows.append(torch.stack(row))
    return sigmoid_of(torch.stack(rows), batch.parameters["text_conditioned_bias"], batch)


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


def swapped_words(batch: Batch) -> Tensor:
    """Let an image choose among all captions and its own swapped one, a caption among all images."""
    plain, gained = with_altered(batch, hard_maximum)
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


def reversed_relations(batch: Batch, maximum: Maximum = hard_maximum) -> Tensor:
    """Do the same with a weight of a quarter instead of a half."""
    plain, gained = with_altered(batch, maximum)
    return plain + gained / 4


def caption_words(batch: Batch) -> Tensor:
    """Compute SuperCLIP's classification (Zhao et al., 2025) token by token; no weight is below 0."""
    captions = [set(ids[:n].tolist()) for ids, n in zip(batch.ids, batch.lengths, strict=True)]
    count = len(captions)
    total = torch.zeros((), dtype=torch.float64)
    for patches, caption in zip(batch.image, captions, strict=True):
        seen = patches.shape[1] ** 0.5 * patches.mean(dim=0)
        shares = F.log_softmax(batch.parameters["caption_words"][0] @ seen, dim=0)
        weights = {c: max(0.0, math.log(count / (1 + sum(c in other for other in captions)))) for c in caption}
        for token, weight in weights.items():
            share = weight / sum(weights.values()) if weight else 0.0
            total = total - share * shares[token]
    return total / count


RESEARCH: dict[str, Callable[[Batch], Tensor]] = {
    "sparc": sparc,
    "text_conditioned": text_conditioned,
    "hard_negatives": hard_negatives,
    "swapped_words": swapped_words,
    "exchanged_nouns": exchanged_nouns,
    "reversed_relations": reversed_relations,
    "caption_words": caption_words,
}
