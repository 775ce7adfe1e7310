"""Late interaction over many ranks: every rank scores its own images and its own texts against all others."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from filip.interaction.dispatch import late_interaction
from filip.interaction.loss import global_similarity
from filip.interaction.packed import Similarity

Group = Any  # dist.ProcessGroup | None: torch's own stubs disagree about it between versions


def distributed_late_interaction(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    *,
    group: Group = None,
    form: str = "gather",
    transport_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Similarity:
    """i2t [b, N]: own images against all texts; t2i [N, b]: all images against own texts."""
    if form not in ("gather", "ring"):
        raise ValueError(f"form={form!r} is not one of gather, ring")
    if world_size(group) == 1:
        return late_interaction(image_tokens, text_tokens, text_lengths, backend=backend)
    if transport_dtype is not None:
        image_tokens, text_tokens = image_tokens.to(transport_dtype), text_tokens.to(transport_dtype)
    lengths = text_lengths.to(text_tokens.device)
    all_lengths = torch.cat(_gather_rows(lengths, group))
    all_texts = _AllGather.apply(text_tokens, group)
    own = late_interaction(image_tokens, all_texts, all_lengths, backend=backend)
    images = _sizes(len(image_tokens), image_tokens.device, group)
    texts = _sizes(len(lengths), image_tokens.device, group)
    return Similarity(own.i2t, _Exchange.apply(own.t2i, images, texts, group))


def distributed_global_similarity(image: Tensor, text: Tensor, *, group: Group = None) -> Similarity:
    """CLIP's form: i2t [b, N] and t2i [N, b] from ``image`` [b, d] and ``text`` [b, d] of each rank."""
    if world_size(group) == 1:
        return global_similarity(image, text)
    i2t = global_similarity(image, _AllGather.apply(text, group)).i2t
    t2i = global_similarity(_AllGather.apply(image, group), text).t2i
    return Similarity(i2t, t2i)


def gather_ids(ids: Tensor, *, group: Group = None) -> tuple[Tensor, int]:
    """All ranks' ``ids`` [b] int64 in rank order, [N], and the offset of this rank's own among them."""
    if world_size(group) == 1:
        return ids, 0
    parts = _gather_rows(ids, group)
    return torch.cat(parts), sum(len(part) for part in parts[: dist.get_rank(group)])


def world_size(group: Group = None) -> int:
    """Ranks in the group; 1 when torch.distributed is not initialised."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def _sizes(count: int, device: torch.device, group: Group) -> list[int]:
    own = torch.tensor([count], device=device)
    parts = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(parts, own, group=group)
    return torch.cat(parts).tolist()


def _gather_rows(rows: Tensor, group: Group) -> list[Tensor]:
    """All ranks' ``rows``, of unequal number: padded to the longest for the wire, cut afterwards."""
    counts = _sizes(len(rows), rows.device, group)
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]


class _AllGather(torch.autograd.Function):
    """Concatenate the rows of all ranks; the backward sums every rank's gradient at the owner."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Group) -> Tensor:
        parts = _gather_rows(rows.contiguous(), group)
        ctx.group, ctx.counts = group, [len(part) for part in parts]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0]
        longest = max(ctx.counts)
        chunks = []
        for part in grad.split(ctx.counts):
            chunk = grad.new_zeros(longest, *grad.shape[1:])
            chunk[: len(part)] = part
            chunks.append(chunk)
        own = torch.empty_like(chunks[0])
        dist.reduce_scatter(own, chunks, group=ctx.group)
        return own[: ctx.counts[dist.get_rank(ctx.group)]], None


class _Exchange(torch.autograd.Function):
    """[own images, all texts] on each rank to [all images, own texts]: every pair is scored by one rank."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, images: list[int], texts: list[int], group: Group) -> Tensor:
        ctx.images, ctx.texts, ctx.group = images, texts, group
        return _exchange(own, images, texts, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        back = _exchange(grads[0].T, ctx.texts, ctx.images, ctx.group)
        return back.T, None, None, None


def _exchange(own: Tensor, images: list[int], texts: list[int], group: Group) -> Tensor:
    """``own`` [images[rank], sum(texts)] to [sum(images), texts[rank]] by one all-to-all."""
    rank = dist.get_rank(group)
    outgoing = torch.cat([block.reshape(-1) for block in own.split(texts, dim=1)])
    incoming = own.new_empty(sum(images) * texts[rank])
    dist.all_to_all_single(
        incoming,
        outgoing,
        [count * texts[rank] for count in images],
        [images[rank] * count for count in texts],
        group=group,
    )
    return incoming.view(sum(images), texts[rank])
