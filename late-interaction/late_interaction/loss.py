"""Compute the contrastive loss over a pair of similarity matrices, on one process or on each rank's rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from late_interaction.packing import Similarity, accumulation_dtype


class ContrastiveOutput(NamedTuple):
    """The loss and its parts, all scalars. Both halves carry a gradient too; the accuracies are fractions in 0..1."""

    loss: Tensor
    i2t_loss: Tensor
    t2i_loss: Tensor
    i2t_accuracy: Tensor
    t2i_accuracy: Tensor


def pooled_similarity(image: Tensor, text: Tensor) -> Similarity:
    """Return CLIP's similarity of one vector per side, ``image`` [b, d] and ``text`` [t, d]; both the same."""
    check_vectors(image, text)
    wide = accumulation_dtype(torch.promote_types(image.dtype, text.dtype))
    with torch.autocast(image.device.type, enabled=False):
        product = image.to(wide) @ text.to(wide).T
    return Similarity(product, product)


def check_vectors(image: Tensor, text: Tensor) -> None:
    """Raise ValueError unless they are [images, d] and [texts, d] with at least one of each."""
    if image.dim() != 2 or text.dim() != 2 or image.shape[1] != text.shape[1]:
        raise ValueError(f"expected [images, d] and [texts, d], got {list(image.shape)} and {list(text.shape)}")
    if image.shape[0] == 0 or text.shape[0] == 0:
        raise ValueError(f"empty batch: {image.shape[0]} images and {text.shape[0]} texts")


def contrastive_loss(
    similarity: Similarity,
    logit_scale: Tensor,
    *,
    offset: int = 0,
    ids: Tensor | None = None,
    all_ids: Tensor | None = None,
    label_smoothing: float = 0.0,
    negatives: Tensor | None = None,
) -> ContrastiveOutput:
    """Compute the symmetric cross-entropy: soft-max of scale * i2t over texts, of scale * t2i over images.

    Arguments
        similarity   i2t [b, N] and t2i [N, b]: the rank's images against all texts, all images against its texts
        logit_scale  the factor itself (1 / temperature), not its logarithm; one element
        offset       where this rank's pairs start among the N (see gather_ids)
        ids          [b] int64; all items with an equal id are positives of each other, each with the target
                     1 / #positives. None: only an item's pair is positive
        all_ids      [N] int64, the ids of all ranks; None: ``ids`` (one process)
        label_smoothing  share of each target that goes to all N alike
        negatives    [b, k], the s^I of each image with k texts of its own that do not describe it: k further columns
                     of the images' soft-max, and of nothing else

    Everything from the scaled similarity on is float32 (float64 for float64 input). The mean runs over this
    rank's b rows: when every rank has the same b, the mean over ranks of this loss is the loss of one
    process that holds all N pairs, and averaging the ranks' gradients (as DeepSpeed and DDP do) gives the
    gradients of that loss, with no further factor.
    """
    wide = accumulation_dtype(similarity.i2t.dtype)
    b, n = similarity.i2t.shape
    if similarity.t2i.shape != (n, b) or offset < 0 or offset + b > n:
        raise ValueError(
            f"each image needs one text in its place: i2t [{b} images, {n} texts] needs t2i [{n}, {b}] and 0 <= "
            f"offset <= {n - b}; got t2i {list(similarity.t2i.shape)} and offset {offset}"
        )
    target: Tensor = torch.arange(offset, offset + b, device=similarity.i2t.device)
    positives = None if ids is None else _positives(ids, ids if all_ids is None else all_ids, target, n)
    with torch.autocast(similarity.i2t.device.type, enabled=False):
        scale = logit_scale.to(wide).reshape(())
        of_images = similarity.i2t.to(wide)
        if negatives is not None:
            of_images = torch.cat([of_images, negatives.to(wide)], dim=1)
        i2t_loss, i2t_accuracy = _one_direction(scale * of_images, target, positives, label_smoothing)
        t2i_loss, t2i_accuracy = _one_direction(scale * similarity.t2i.to(wide).T, target, positives, label_smoothing)
        return ContrastiveOutput((i2t_loss + t2i_loss) / 2, i2t_loss, t2i_loss, i2t_accuracy, t2i_accuracy)


def _one_direction(logits: Tensor, target: Tensor, positives: Tensor | None, smoothing: float) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and accuracy of ``logits`` [b, N and more]; a hit is any positive ranked first."""
    best = logits.detach().argmax(dim=1)
    if positives is None:
        loss = F.cross_entropy(logits, target, label_smoothing=smoothing)
        return loss, (best == target).to(logits.dtype).mean()
    positives = F.pad(positives, (0, logits.shape[1] - positives.shape[1]))
    hits = positives.gather(1, best[:, None]).to(logits.dtype).mean()
    shares = positives.to(logits.dtype) / positives.sum(dim=1, keepdim=True)
    return F.cross_entropy(logits, shares, label_smoothing=smoothing), hits


def _positives(ids: Tensor, all_ids: Tensor, target: Tensor, n: int) -> Tensor:
    if ids.shape != target.shape or all_ids.shape != (n,):
        raise ValueError(
            f"ids and all_ids must be [{len(target)}] and [{n}], got {list(ids.shape)} and {list(all_ids.shape)}"
        )
    ids, all_ids = ids.to(target.device), all_ids.to(target.device)
    # Looking at the values would wait for a GPU and break a compiled graph; a mix-up shows on a CPU just as well.
    on_cpu = target.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu and not torch.equal(all_ids[target], ids):
        raise ValueError("all_ids does not hold ids at this rank's offset; take both from gather_ids")
    return ids[:, None] == all_ids[None, :]
