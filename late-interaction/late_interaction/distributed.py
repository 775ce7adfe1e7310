"""Compute late interaction over many ranks: each scores its images and its texts against those of all others.

Every image-text pair is scored once, by the rank that owns the image: one product gives both maxima.
So only text tokens are sent (they are fewer than image tokens), and the finished s^T, one number per pair, goes
to the rank that owns the text by an all-to-all. Other implementations gather both sides and multiply twice.

``gather`` brings all texts to every rank and calls the backend once. ``ring`` passes them from rank to
rank, one block being scored while the next one arrives; in the backward they are sent round once more, each
followed by its gradient, which is complete when it is back at its owner.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from late_interaction.agreement import EXCHANGES, FUNCTIONS, Call, describe, exchange_calls
from late_interaction.backends import Backend, SmoothMaximum, choose_backend, softness
from late_interaction.collectives import (
    Group,
    all_to_all_blocks,
    gather_rows,
    group_rank,
    reduce_scatter_rows,
    ring_send_recv,
    wait_all,
    world_size,
)
from late_interaction.differentiation import first_derivative_only, refuse_transforms
from late_interaction.lengths import Lengths
from late_interaction.loss import check_vectors, pooled_similarity
from late_interaction.operator import Plan, as_input_gradients, interact, wants_gradient
from late_interaction.packing import Pair, Similarity, accumulation_dtype, longest_of, pack


def distributed_late_interaction(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    *,
    image_lengths: Tensor | None = None,
    image_mask: Tensor | None = None,
    group: Group = None,
    exchange: str = "gather",
    transport_dtype: torch.dtype | None = None,
    backend: str | Backend = "auto",
    maximum: SmoothMaximum | None = None,
    recompute: bool = False,
) -> Similarity:
    """Compute :func:`late_interaction` of this rank's b images and texts with those of all ranks, N in total.

    Arguments as in late_interaction, for this rank; the number of pairs and of tokens may differ between ranks, and a
    rank may have an image_mask or image_lengths where others have none. Every rank of the group must call it (and
    its backward), in the same order, with the same number of features, dtype and exchange, and with gradients needed
    for the same sides. In addition:
        exchange         "gather": all text tokens on every rank; fewest messages. "ring": at most two
                         blocks of remote tokens at a time, however many ranks there are
        transport_dtype  tokens are rounded to it before they are sent and multiplied (the paper: float16),
                         also on one process. Gradients are not: they travel and arrive as computed,
                         in the accumulation dtype, before they take the dtype of the tokens
        recompute        do not save the arg-max maps, b * N * (n1 + mean n2) bytes, but score again in the
                         backward

    Returns ``i2t`` [b, N], own images against all texts, and ``t2i`` [N, b], all images against own texts,
    in rank order. Gradients flow to the rank that owns a token, summed over all ranks' losses.
    Without torch.distributed, or on one rank, it is late_interaction.

    Raises what late_interaction raises. A mistake on one rank, or ranks that disagree on what must be the same, raise a
    ValueError on all of them.
    """
    options = Options(group, exchange, transport_dtype, backend, maximum, recompute)
    return score_ranks(image_tokens, text_tokens, text_lengths, options, image_mask, image_lengths)[0]


class Options(NamedTuple):
    """Keyword arguments of :func:`distributed_late_interaction`."""

    group: Group
    exchange: str
    transport_dtype: torch.dtype | None
    backend: str | Backend
    maximum: SmoothMaximum | None
    recompute: bool


def score_ranks(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    options: Options,
    image_mask: Tensor | None = None,
    image_lengths: Tensor | None = None,
) -> tuple[Similarity, list[int]]:
    """Compute :func:`distributed_late_interaction`, and return also how many texts each rank has."""
    refuse_transforms("distributed_late_interaction")
    group, exchange, dtype, backend, maximum, recompute = options
    dtype = dtype or torch.promote_types(image_tokens.dtype, text_tokens.dtype)
    if world_size(group) == 1:
        if exchange not in EXCHANGES:
            raise unknown_exchange(exchange)
        tokens = image_tokens, text_tokens, text_lengths, image_mask, image_lengths
        similarity = interact(*tokens, backend=backend, maximum=maximum, dtype=dtype, recompute=recompute)
        return similarity, [similarity.i2t.shape[1]]
    own_call: Call | Exception
    temperature, unit = softness(maximum)
    lengths: list[int] = []
    of_images: list[int] | None = None
    try:
        if exchange not in EXCHANGES:
            raise unknown_exchange(exchange)
        image_tokens, text_tokens, lengths, of_images, *_ = pack(
            image_tokens, text_tokens, text_lengths, image_mask, image_lengths
        )
        choose_backend(image_tokens[:0].to(dtype), longest_of(lengths, of_images), backend)
        own_call = describe(
            "distributed_late_interaction", image_tokens, text_tokens, len(lengths), exchange, dtype
        )._replace(images=len(of_images or image_tokens))
    except Exception as mistake:  # raised below, once the other ranks know of it
        own_call = mistake
    calls, every = exchange_calls(own_call, image_tokens.device, group, lengths)
    layout = Layout(group, group_rank(group), [call.images for call in calls], [Lengths(n) for n in every])
    longest = longest_of(layout.all_lengths, of_images)
    module = choose_backend(image_tokens[:0].to(dtype), longest, backend)
    function = _Gathered if exchange == "gather" else _Ring
    recompute = recompute or not wants_gradient(image_tokens, text_tokens)  # no backward, so no maps
    plan = Plan(module, dtype, recompute, layout.all_lengths, of_images, temperature, unit)
    return Similarity(*function.apply(image_tokens, text_tokens, plan, layout)), layout.texts


def unknown_exchange(exchange: str) -> ValueError:
    """Return an error to raise where ``exchange`` is none of EXCHANGES."""
    return ValueError(f"exchange={exchange!r} is not one of {', '.join(EXCHANGES)}")


def distributed_pooled_similarity(image: Tensor, text: Tensor, *, group: Group = None) -> Similarity:
    """Compute CLIP's similarity from each rank's ``image`` [b, d] and ``text`` [b, d].

    The result is ``i2t`` [b, N] and ``t2i`` [N, b].
    """
    if world_size(group) == 1:
        return pooled_similarity(image, text)
    own_call: Call | Exception
    try:
        check_vectors(image, text)
        own_call = describe("distributed_pooled_similarity", image, text, len(text))
    except Exception as mistake:  # raised below, once the other ranks know of it
        own_call = mistake
    calls, _ = exchange_calls(own_call, image.device, group)
    images, texts = [call.images for call in calls], [call.texts for call in calls]
    similarity = pooled_similarity(image, _AllRows.apply(text, texts, group)).i2t
    return Similarity(*_Exchange.apply(similarity, images, texts, group))


def gather_ids(ids: Tensor, *, group: Group = None, counts: Sequence[int] | None = None) -> tuple[Tensor, int]:
    """Return all ranks' ``ids`` [b] int64 in rank order, [N], and the offset of this rank's own among them.

    ``counts``: those of all ranks, where they are known; otherwise the ranks tell one another.
    """
    if world_size(group) == 1:
        return ids, 0
    if counts is None:
        own_call = Call(FUNCTIONS.index("gather_ids"), valid=1, texts=len(ids))
        counts = [call.texts for call in exchange_calls(own_call, ids.device, group)[0]]
    return gather_rows(ids, counts, group), sum(counts[: group_rank(group)])


@dataclass(frozen=True)
class Layout:
    """The ownership of images and texts by ranks, known to all before the first token is sent."""

    group: Group
    rank: int
    images: list[int]  # per rank
    lengths: list[Lengths]  # those of each text, by rank

    @property
    def ranks(self) -> int:
        return len(self.images)

    @functools.cached_property
    def texts(self) -> list[int]:
        return [len(lengths) for lengths in self.lengths]

    @functools.cached_property
    def tokens(self) -> list[int]:
        return [sum(lengths) for lengths in self.lengths]

    @functools.cached_property
    def all_lengths(self) -> Lengths:
        return Lengths(length for of_rank in self.lengths for length in of_rank)

    def columns(self, owner: int) -> slice:
        """Return where the texts of ``owner`` are among all texts."""
        start = sum(self.texts[:owner])
        return slice(start, start + self.texts[owner])


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image_tokens: Tensor, text_tokens: Tensor, plan: Plan, layout: Layout) -> Pair:
        texts = gather_rows(text_tokens.to(plan.dtype), layout.tokens, layout.group)
        (i2t, own_t2i), residuals = plan.score(plan.tokens(image_tokens, texts))
        ctx.save_for_backward(image_tokens, text_tokens, texts, *residuals)
        ctx.plan, ctx.layout = plan, layout
        return i2t, all_to_all_blocks(own_t2i, layout.images, layout.texts, layout.group)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, text, texts, *residuals = ctx.saved_tensors
        plan, layout, needs = ctx.plan, ctx.layout, ctx.needs_input_grad[:2]
        grad_t2i = all_to_all_blocks(grads[1].T, layout.texts, layout.images, layout.group).T
        own_gradients, remote = plan.gradients(plan.tokens(image, texts), (grads[0], grad_t2i), tuple(residuals), needs)
        if needs[1]:  # the same on all ranks
            remote = reduce_scatter_rows(remote, layout.tokens, layout.group)
        return *as_input_gradients((own_gradients, remote), needs, (image, text)), None, None


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image_tokens: Tensor, text_tokens: Tensor, plan: Plan, layout: Layout) -> Pair:
        images, texts = plan.tokens(image_tokens, text_tokens)[:2]
        i2t = images.new_empty(layout.images[layout.rank], sum(layout.texts), dtype=accumulation_dtype(plan.dtype))
        own_t2i = torch.empty_like(i2t)
        saved: list[Tensor] = []
        for owner, block in ring_blocks(texts.detach(), layout):
            columns = layout.columns(owner)
            of_owner = plan._replace(lengths=layout.lengths[owner])
            (i2t[:, columns], own_t2i[:, columns]), residuals = of_owner.score(of_owner.tokens(images, block))
            saved += residuals
        ctx.save_for_backward(image_tokens, text_tokens, *saved)
        ctx.plan, ctx.layout = plan, layout
        return i2t, all_to_all_blocks(own_t2i, layout.images, layout.texts, layout.group)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, text, *saved = ctx.saved_tensors
        plan, layout, needs = ctx.plan, ctx.layout, ctx.needs_input_grad[:2]
        images, texts = plan.tokens(image, text)[:2]
        per_step = len(saved) // layout.ranks
        grad_t2i = all_to_all_blocks(grads[1].T, layout.texts, layout.images, layout.group).T
        grad_images = torch.zeros_like(images, dtype=grads[0].dtype)
        total = grad_images.new_empty(0)
        handles: list[Any] = []
        for step, (owner, block) in enumerate(ring_blocks(texts, layout)):
            columns = layout.columns(owner)
            of_owner = plan._replace(lengths=layout.lengths[owner])
            residuals = tuple(saved[step * per_step : (step + 1) * per_step])
            both = (grads[0][:, columns], grad_t2i[:, columns])
            own_gradients, remote = of_owner.gradients(of_owner.tokens(images, block), both, residuals, needs)
            if needs[0]:
                grad_images += own_gradients
            if not needs[1]:  # the same on all ranks
                continue
            wait_all(handles)  # this block's sum over the ranks before this one has arrived
            summed = remote.contiguous() if step == 0 else total.add_(remote)
            following = layout.tokens[(owner - 1) % layout.ranks]
            total, handles = ring_send_recv(summed, (following, summed.shape[1]), layout.group)
        wait_all(handles)  # after the last hop each gradient is with its owner
        return *as_input_gradients((grad_images, total), needs, (image, text)), None, None


def ring_blocks(block: Tensor, layout: Layout) -> Iterator[tuple[int, Tensor]]:
    """Yield (owner, text tokens) of every rank, this rank's first.

    The next block is received while one is in use.
    """
    block = block.contiguous()
    for step in range(layout.ranks):
        owner = (layout.rank - step) % layout.ranks
        if step + 1 == layout.ranks:
            yield owner, block
            return
        following = layout.tokens[(owner - 1) % layout.ranks]
        arriving, handles = ring_send_recv(block, (following, block.shape[1]), layout.group)
        yield owner, block
        wait_all(handles)
        block = arriving


class _AllRows(torch.autograd.Function):
    """Function that gathers the rows of all ranks; the backward sums every rank's gradient at the owner."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], group: Group) -> Tensor:
        ctx.counts, ctx.group = counts, group
        return gather_rows(rows, counts, group)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return reduce_scatter_rows(grads[0], ctx.counts, ctx.group), None, None


class _Exchange(torch.autograd.Function):
    """Return a rank's rows and its exchanged columns from one node, so that the collective always runs."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: list[int], columns: list[int], group: Group) -> tuple[Tensor, Tensor]:
        ctx.rows, ctx.columns, ctx.group = rows, columns, group
        return own.view_as(own), all_to_all_blocks(own, rows, columns, group)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        returned = all_to_all_blocks(grads[1].T, ctx.columns, ctx.rows, ctx.group).T
        return grads[0] + returned, None, None, None
