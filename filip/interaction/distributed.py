"""Late interaction over many ranks: each scores its own images and its own texts against all the others'.

Every image-text pair is scored once, by the rank that owns the image: from one product come both maxima.
So only text tokens are sent (they are fewer than image tokens), and the finished s^T, one number per pair, goes
to the rank that owns the text by an all-to-all. Other implementations gather both sides and multiply twice.

``gather`` brings all texts to every rank and calls the backend once. ``ring`` passes them from rank to
rank, one block being scored while the next one arrives; in the backward they are sent round once more, each
followed by its gradient, which is complete when it is back at its owner.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from filip.interaction.collectives import (
    Group,
    all_to_all_blocks,
    gather_counts,
    gather_rows,
    group_rank,
    reduce_scatter_rows,
    ring_send_recv,
    wait_all,
    world_size,
)
from filip.interaction.dispatch import (
    Backend,
    choose_backend,
    late_interaction,
    run_backward,
    run_forward,
    wants_gradient,
)
from filip.interaction.loss import pooled_similarity
from filip.interaction.packing import Similarity, accumulation_dtype, check_tokens

EXCHANGES = ("gather", "ring")


def distributed_late_interaction(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    *,
    group: Group = None,
    exchange: str = "gather",
    transport_dtype: torch.dtype | None = None,
    backend: str = "auto",
    recompute: bool = False,
) -> Similarity:
    """:func:`late_interaction` of this rank's b images and texts with those of all ranks, N in total.

    Arguments as in late_interaction, this rank's own; the number of pairs and of text tokens may differ
    between ranks. Every rank of the group must call it (and its backward), in the same order. Besides
        exchange         "gather": all text tokens on every rank; fewest messages. "ring": at most two
                         blocks of remote tokens at a time, however many ranks there are
        transport_dtype  tokens are rounded to it before they are sent and multiplied (the paper: float16),
                         also on one process; gradients always travel in the accumulation dtype
        recompute        do not save the arg-max maps, b * N * (n1 + mean n2) bytes, but score again in the
                         backward

    Returns ``i2t`` [b, N], own images against all texts, and ``t2i`` [N, b], all images against own texts,
    in rank order. Gradients flow to the rank that owns a token, summed over all ranks' losses.
    Without torch.distributed, or on one rank, it is late_interaction.
    """
    if exchange not in EXCHANGES:
        raise ValueError(f"exchange={exchange!r} is not one of {', '.join(EXCHANGES)}")
    if transport_dtype is not None:
        image_tokens, text_tokens = image_tokens.to(transport_dtype), text_tokens.to(transport_dtype)
    if world_size(group) == 1:
        return late_interaction(image_tokens, text_tokens, text_lengths, backend=backend)
    lengths = check_tokens(image_tokens, text_tokens, text_lengths)
    common = torch.promote_types(image_tokens.dtype, text_tokens.dtype)
    image_tokens, text_tokens = image_tokens.to(common), text_tokens.to(common)
    layout = _layout(len(image_tokens), lengths, image_tokens.device, group)
    module = choose_backend(image_tokens, max(map(max, layout.lengths)), backend)
    function = _Gathered if exchange == "gather" else _Ring
    recompute = recompute or not wants_gradient(image_tokens, text_tokens)  # no backward, so no maps
    return Similarity(*function.apply(image_tokens, text_tokens, layout, module, recompute))


def distributed_pooled_similarity(image: Tensor, text: Tensor, *, group: Group = None) -> Similarity:
    """CLIP's form: ``i2t`` [b, N] and ``t2i`` [N, b] from each rank's ``image`` [b, d] and ``text`` [b, d]."""
    if world_size(group) == 1:
        return pooled_similarity(image, text)
    counts = gather_counts([len(image), len(text)], image.device, group)
    images, texts = [count[0] for count in counts], [count[1] for count in counts]
    own = pooled_similarity(image, _AllRows.apply(text, texts, group)).i2t
    return Similarity(own, _Exchange.apply(own, images, texts, group))


def gather_ids(ids: Tensor, *, group: Group = None) -> tuple[Tensor, int]:
    """All ranks' ``ids`` [b] int64 in rank order, [N], and the offset of this rank's own among them."""
    if world_size(group) == 1:
        return ids, 0
    counts = [count[0] for count in gather_counts([len(ids)], ids.device, group)]
    return torch.cat(gather_rows(ids, counts, group)), sum(counts[: group_rank(group)])


@dataclass(frozen=True)
class _Layout:
    """Which rank owns which images and texts, known to all before the first token is sent."""

    group: Group
    rank: int
    images: list[int]  # per rank
    lengths: list[list[int]]  # per rank, of each text

    @property
    def ranks(self) -> int:
        return len(self.images)

    @property
    def texts(self) -> list[int]:
        return [len(lengths) for lengths in self.lengths]

    @property
    def tokens(self) -> list[int]:
        return [sum(lengths) for lengths in self.lengths]

    def columns(self, owner: int) -> slice:
        """Where the texts of ``owner`` lie among all texts."""
        start = sum(self.texts[:owner])
        return slice(start, start + len(self.lengths[owner]))


def _layout(images: int, lengths: list[int], device: torch.device, group: Group) -> _Layout:
    counts = gather_counts([images, len(lengths)], device, group)
    own = torch.tensor(lengths, device=device)
    every = gather_rows(own, [count[1] for count in counts], group)
    return _Layout(
        group, group_rank(group), [count[0] for count in counts], [part.tolist() for part in every]
    )


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image_tokens: Tensor, text_tokens: Tensor, layout: _Layout, module: Backend, recompute: bool
    ) -> tuple[Tensor, Tensor]:
        texts = torch.cat(gather_rows(text_tokens, layout.tokens, layout.group))
        lengths = [length for part in layout.lengths for length in part]
        i2t, own_t2i, residuals = run_forward(
            module, image_tokens, texts, lengths, save_for_backward=not recompute
        )
        ctx.save_for_backward(image_tokens, texts, *(() if recompute else residuals))
        ctx.layout, ctx.module, ctx.lengths, ctx.recompute = layout, module, lengths, recompute
        return i2t, all_to_all_blocks(own_t2i, layout.images, layout.texts, layout.group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image_tokens, texts, *saved = ctx.saved_tensors
        layout, residuals = ctx.layout, tuple(saved)
        grad_t2i = all_to_all_blocks(grads[1].T, layout.texts, layout.images, layout.group).T
        if ctx.recompute:
            residuals = run_forward(ctx.module, image_tokens, texts, ctx.lengths)[2]
        both = (grads[0], grad_t2i)
        own, remote = run_backward(ctx.module, both, image_tokens, texts, ctx.lengths, residuals)
        returned = reduce_scatter_rows(remote.to(grads[0].dtype), layout.tokens, layout.group)
        return own.to(image_tokens.dtype), returned.to(texts.dtype), None, None, None


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image_tokens: Tensor, text_tokens: Tensor, layout: _Layout, module: Backend, recompute: bool
    ) -> tuple[Tensor, Tensor]:
        wide = accumulation_dtype(image_tokens.dtype)
        i2t = image_tokens.new_empty(len(image_tokens), sum(layout.texts), dtype=wide)
        own_t2i = torch.empty_like(i2t)
        saved: list[Tensor] = []
        for owner, block in _ring_blocks(text_tokens.detach(), layout):
            columns = layout.columns(owner)
            i2t[:, columns], own_t2i[:, columns], residuals = run_forward(
                module, image_tokens, block, layout.lengths[owner], save_for_backward=not recompute
            )
            saved += () if recompute else residuals
        ctx.save_for_backward(image_tokens, text_tokens, *saved)
        ctx.layout, ctx.module, ctx.recompute = layout, module, recompute
        return i2t, all_to_all_blocks(own_t2i, layout.images, layout.texts, layout.group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image_tokens, text_tokens, *saved = ctx.saved_tensors
        layout, module = ctx.layout, ctx.module
        per_step = len(saved) // layout.ranks
        grad_t2i = all_to_all_blocks(grads[1].T, layout.texts, layout.images, layout.group).T
        grad_images = torch.zeros_like(image_tokens, dtype=grads[0].dtype)
        total: Tensor | None = None
        handles: list[Any] = []
        for step, (owner, block) in enumerate(_ring_blocks(text_tokens, layout)):
            lengths, columns = layout.lengths[owner], layout.columns(owner)
            residuals = tuple(saved[step * per_step : (step + 1) * per_step])
            if ctx.recompute:
                residuals = run_forward(module, image_tokens, block, lengths)[2]
            both = (grads[0][:, columns], grad_t2i[:, columns])
            own, remote = run_backward(module, both, image_tokens, block, lengths, residuals)
            remote = remote.to(grads[0].dtype)  # a backend may round to the dtype of the tokens
            grad_images += own
            wait_all(handles)  # what the ranks before this one have summed for this block is here now
            summed = remote.contiguous() if total is None else total.add_(remote)
            following = layout.tokens[(owner - 1) % layout.ranks]
            total, handles = ring_send_recv(summed, (following, summed.shape[1]), layout.group)
        wait_all(handles)  # after the last hop each gradient is at its owner
        assert total is not None
        return grad_images.to(image_tokens.dtype), total.to(text_tokens.dtype), None, None, None


def _ring_blocks(block: Tensor, layout: _Layout) -> Iterator[tuple[int, Tensor]]:
    """(owner, text tokens) of every rank, this rank's first; the next block is received while one is in use."""
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
    """The rows of all ranks, one rank after the other; the backward sums every rank's gradient at the owner."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], group: Group) -> Tensor:
        ctx.counts, ctx.group = counts, group
        return torch.cat(gather_rows(rows, counts, group))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return reduce_scatter_rows(grads[0], ctx.counts, ctx.group), None, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: list[int], columns: list[int], group: Group) -> Tensor:
        ctx.rows, ctx.columns, ctx.group = rows, columns, group
        return all_to_all_blocks(own, rows, columns, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return all_to_all_blocks(grads[0].T, ctx.columns, ctx.rows, ctx.group).T, None, None, None
