"""SigLIP's loss (Zhai et al., 2023), on one vector per side and on the token-wise similarity.

    L = - 1/b  sum over own images i and all texts j of  log sigmoid(z_ij (t s_ij + c))

z_ij is 1 for positives (the own pair, or with soft targets all pairs of its group) and -1 otherwise. On tokens it is
the mean of this for s^I, by image, and for s^T, by text. The temperature is the one that all terms share, so it
starts at the model's ``init_temperature`` where SigLIP starts at 0.1; the bias c starts at -10 as in SigLIP.
open_clip's ``SigLipLoss`` counts the own pair alone as positive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.citations import FILIP, SIGLIP
from filip.interaction.agreement import EXCHANGES, Call, describe, exchange_calls
from filip.interaction.collectives import Group, gather_rows, reduce_scatter_rows, ring_send_recv, wait_all, world_size
from filip.interaction.differentiation import first_derivative_only
from filip.interaction.distributed import Layout, ring_blocks, row_layout, unknown_exchange
from filip.interaction.loss import check_vectors
from filip.interaction.packing import accumulation_dtype, product
from filip.train.losses import token_wise
from filip.train.losses.term import BatchShape, LossInput, Term, TermOutput

INITIAL_BIAS = -10.0


def compute(batch: LossInput) -> TermOutput:
    """Compute the sigmoid loss over the cosine of all pairs of vectors, one rank's texts at a time."""
    found = distributed_sigmoid_loss(
        *batch.vectors,
        batch.encoded.logit_scale,
        batch.parameters["sigmoid_bias"],
        exchange=batch.settings.exchange,
        offset=batch.offset,
        ids=batch.positives,
        all_ids=batch.all_positives,
    )
    return TermOutput(found.loss, {"accuracy/i2t": found.accuracy, **_bias(batch, "sigmoid_bias")})


def compute_token_wise(batch: LossInput) -> TermOutput:
    """Compute the mean of the sigmoid losses over s^I and over s^T."""
    similarity, metrics = batch.once("token_wise", token_wise.token_wise_similarity)
    bias = batch.parameters["token_wise_sigmoid_bias"]
    i2t, t2i = (
        sigmoid_loss(
            matrix,
            batch.encoded.logit_scale,
            bias,
            offset=batch.offset,
            ids=batch.positives,
            all_ids=batch.all_positives,
        )
        for matrix in (similarity.i2t, similarity.t2i.T)
    )
    halves = {"loss/i2t": i2t.loss, "loss/t2i": t2i.loss, "accuracy/i2t": i2t.accuracy, "accuracy/t2i": t2i.accuracy}
    return TermOutput((i2t.loss + t2i.loss) / 2, halves | metrics | _bias(batch, "token_wise_sigmoid_bias"))


def _bias(batch: LossInput, name: str) -> dict[str, Tensor]:
    return {"optimizer/logit_bias": batch.parameters[name].mean()}


def chance(pairs: int) -> float:
    """Return the loss if every pair is answered with the share of positives, 1 / ``pairs``: about log(pairs) + 1."""
    return math.log(pairs) - (pairs - 1) * math.log1p(-1 / pairs) if pairs > 1 else 0.0


def memory(shape: BatchShape) -> float:
    """Return the bytes of this rank's vectors with gradients in float32, all texts and two blocks of similarities."""
    texts = shape.setting.global_batch if shape.exchange == "gather" else 4 * shape.pairs
    return shape.pairs * 2 * shape.dim * 8 + texts * shape.dim * 8 + 2 * 4 * shape.pairs**2


SIGMOID = Term(
    compute,
    "vectors",
    chance,
    memory,
    "sigmoid of the cosine of [CLS] and [EOS]",
    lambda dim: {"sigmoid_bias": torch.tensor([INITIAL_BIAS])},
    exchanged=("vectors",),
    citation=(SIGLIP,),
)
TOKEN_WISE_SIGMOID = Term(
    compute_token_wise,
    "tokens",
    chance,
    token_wise.memory,
    "sigmoid of the token-wise maximum similarity",
    lambda dim: {"token_wise_sigmoid_bias": torch.tensor([INITIAL_BIAS])},
    exchanged=("tokens",),
    own_shapes=True,
    citation=(SIGLIP, FILIP),
)


Targets = tuple[int, Tensor | None, Tensor | None]  # offset, ids and all_ids as in contrastive_loss


class SigmoidOutput(NamedTuple):
    """Scalars. ``loss`` carries the gradient; ``accuracy``: the share of rows whose best item is a positive."""

    loss: Tensor
    accuracy: Tensor


def sigmoid_loss(
    similarity: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    offset: int = 0,
    ids: Tensor | None = None,
    all_ids: Tensor | None = None,
) -> SigmoidOutput:
    """Compute the equation above for an existing ``similarity`` [b, N], such as s^I or the transpose of s^T.

    ``logit_scale`` and ``logit_bias`` have one element each. ``offset``, ``ids`` and ``all_ids`` as in
    :func:`contrastive_loss`: where the rank's items are among the N, and which are each other's positives. The sum over
    all columns is divided by the b rows, so that the mean over ranks of equal b is the loss of one process.
    """
    wide = accumulation_dtype(similarity.dtype)
    b, n = similarity.shape
    positives = _positives(slice(0, n), b, (offset, ids, all_ids), similarity.device)
    with torch.autocast(similarity.device.type, enabled=False):
        logits = logit_scale.to(wide).reshape(()) * similarity.to(wide) + logit_bias.to(wide).reshape(())
        loss = F.softplus(torch.where(positives, -logits, logits)).sum() / len(logits)
        best = similarity.detach().argmax(dim=1, keepdim=True)
        return SigmoidOutput(loss, positives.gather(1, best).to(wide).mean())


def distributed_sigmoid_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    group: Group = None,
    exchange: str = "gather",
    offset: int = 0,
    ids: Tensor | None = None,
    all_ids: Tensor | None = None,
) -> SigmoidOutput:
    """Compute :func:`sigmoid_loss` of one vector per side, ``image`` and ``text`` [b, d], against all ranks'.

    Only the similarities of this rank's images with one rank's texts are held at a time; the backward computes them
    again. ``exchange``: "gather" brings all texts to every rank at once, "ring" two ranks' at a time. Each pair counts
    once, on the rank of its image. It equals open_clip's ``SigLipLoss`` where every rank has as many pairs and only the
    own pair is positive. Every rank calls it, and its backward, in the same order. Raises ValueError on all ranks for a
    mistake on one.
    """
    if exchange not in EXCHANGES and world_size(group) == 1:
        raise unknown_exchange(exchange)
    layout: Layout | None = None
    if world_size(group) == 1:
        check_vectors(image, text)
    else:
        own: Call | Exception
        try:
            if exchange not in EXCHANGES:
                raise unknown_exchange(exchange)
            check_vectors(image, text)
            own = describe("distributed_sigmoid_loss", image, text, len(text), exchange)
        except Exception as mistake:  # raised below, once the other ranks know of it
            own = mistake
        layout = row_layout(exchange_calls(own, image.device, group)[0], group)
    wide = accumulation_dtype(torch.promote_types(image.dtype, text.dtype))
    scale, bias = logit_scale.to(wide).reshape(()), logit_bias.to(wide).reshape(())
    targets = (offset, ids, all_ids)
    return SigmoidOutput(*_Sigmoid.apply(image.to(wide), text.to(wide), scale, bias, layout, exchange, targets))


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        layout: Layout | None,
        exchange: str,
        targets: Targets,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(image, text, scale, bias)
        ctx.layout, ctx.exchange, ctx.targets = layout, exchange, targets
        loss = image.new_zeros(())
        best = image.new_full((len(image),), -torch.inf)
        hit = torch.zeros(len(image), dtype=torch.bool, device=image.device)
        for columns, block in _blocks(text, layout, exchange):
            positives = _positives(columns, len(image), targets, image.device)
            similarity = product(image, block)
            logits = scale * similarity + bias
            loss += F.softplus(torch.where(positives, -logits, logits)).sum()
            found, index = similarity.max(dim=1)
            # Among equal maxima the first in the order of all ranks wins; blocks come in the order of the ring.
            hit = torch.where(found > best, positives.gather(1, index[:, None])[:, 0], hit)
            best = torch.maximum(found, best)
        accuracy = hit.to(image.dtype).mean()
        ctx.mark_non_differentiable(accuracy)
        return loss / len(image), accuracy

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, text, scale, bias = ctx.saved_tensors
        layout: Layout | None = ctx.layout
        grad_image, grad_scale, grad_bias = (torch.zeros_like(image), torch.zeros_like(scale), torch.zeros_like(bias))
        parts: list[Tensor] = []
        total = image.new_empty(0)
        handles: list[Any] = []
        for step, (columns, block) in enumerate(_blocks(text, layout, ctx.exchange)):
            positives = _positives(columns, len(image), ctx.targets, image.device)
            similarity = product(image, block)
            logits = scale * similarity + bias
            by_logits = torch.where(positives, -torch.sigmoid(-logits), torch.sigmoid(logits))
            by_logits *= grads[0] / len(image)
            grad_scale += (by_logits * similarity).sum()
            grad_bias += by_logits.sum()
            grad_image += scale * (by_logits @ block)
            of_block = scale * (by_logits.T @ image)
            if layout is None or ctx.exchange == "gather":
                parts.append(of_block)
                continue
            wait_all(handles)  # this block's sum over the ranks before this one has arrived
            summed = of_block if step == 0 else total.add_(of_block)
            owner = (layout.rank - step) % layout.ranks
            following = layout.texts[(owner - 1) % layout.ranks]
            total, handles = ring_send_recv(summed.contiguous(), (following, summed.shape[1]), layout.group)
        wait_all(handles)  # after the last hop each gradient is with its owner
        if parts:
            total = torch.cat(parts)
            if layout is not None:
                total = reduce_scatter_rows(total, layout.texts, layout.group)
        return grad_image, total, grad_scale, grad_bias, None, None, None


def _blocks(text: Tensor, layout: Layout | None, exchange: str) -> Iterator[tuple[slice, Tensor]]:
    """Yield (columns, texts) of each rank: in the order of ranks if gathered, else around the ring from the own one."""
    if layout is None:
        yield slice(0, len(text)), text
    elif exchange == "gather":
        every = gather_rows(text.detach(), layout.texts, layout.group)
        yield from ((layout.columns(owner), every[layout.columns(owner)]) for owner in range(layout.ranks))
    else:
        yield from ((layout.columns(owner), block) for owner, block in ring_blocks(text.detach(), layout))


def _positives(columns: slice, rows: int, targets: Targets, device: torch.device) -> Tensor:
    """Return [rows, columns] boolean: which of these texts belong to which of this rank's images."""
    offset, ids, all_ids = targets
    if ids is None:
        own = torch.arange(offset, offset + rows, device=device)
        return own[:, None] == torch.arange(columns.start, columns.stop, device=device)
    every = ids if all_ids is None else all_ids
    return ids.to(device)[:, None] == every.to(device)[None, columns]
