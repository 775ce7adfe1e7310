"""The collectives behind distributed late interaction, for ranks with different numbers of rows.

Plain functions without gradients, on gloo and NCCL alike; the autograd Functions that use them call them
in the same order on every rank, in the forward and in the backward, which is what keeps them from
deadlocking.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = Any  # a ProcessGroup, or None for the default group; torch's own annotations vary by version


def world_size(group: Group = None) -> int:
    """Ranks in the group; 1 when torch.distributed is not initialised."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def group_rank(group: Group = None) -> int:
    return dist.get_rank(group) if world_size(group) > 1 else 0


def gather_counts(counts: list[int], device: torch.device, group: Group) -> list[list[int]]:
    """Every rank's ``counts`` (equally many on each), in rank order."""
    own = torch.tensor(counts, device=device)
    parts = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(parts, own, group=group)
    return torch.stack(parts).tolist()


def gather_rows(rows: Tensor, counts: list[int], group: Group) -> list[Tensor]:
    """All ranks' ``rows`` [counts[rank], ...]: padded to the longest on the wire, cut on arrival."""
    padded = rows.contiguous()
    if len(rows) < max(counts):
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded, group=group)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]


def reduce_scatter_rows(rows: Tensor, counts: list[int], group: Group) -> Tensor:
    """``rows`` [sum(counts), ...] on every rank; each gets the sum over ranks of its own section."""
    chunks = []
    for part in rows.contiguous().split(counts):
        chunk = part
        if len(part) < max(counts):
            chunk = rows.new_zeros(max(counts), *rows.shape[1:])
            chunk[: len(part)] = part
        chunks.append(chunk)
    own = torch.empty_like(chunks[0])
    dist.reduce_scatter(own, chunks, group=group)
    return own[: counts[group_rank(group)]]


def all_to_all_blocks(own: Tensor, rows: list[int], columns: list[int], group: Group) -> Tensor:
    """``own`` [rows[rank], sum(columns)] on each rank to [sum(rows), columns[rank]]: one all-to-all.

    ``all_to_all_blocks(result.T, columns, rows).T`` is the inverse, and so the backward.
    """
    rank = group_rank(group)
    outgoing = torch.cat([block.reshape(-1) for block in own.split(columns, dim=1)])
    incoming = own.new_empty(sum(rows) * columns[rank])
    received = [count * columns[rank] for count in rows]
    sent = [rows[rank] * count for count in columns]
    dist.all_to_all_single(incoming, outgoing, received, sent, group=group)
    return incoming.view(sum(rows), columns[rank])


def ring_send_recv(outgoing: Tensor, shape: tuple[int, ...], group: Group) -> tuple[Tensor, list[Any]]:
    """Start sending ``outgoing`` to the next rank of the ring and receiving ``shape`` from the one before.

    Returns the buffer that will hold what arrives, and the handles to wait for before it is read or
    ``outgoing`` written. Both are posted as one batch, which NCCL needs so as not to deadlock.
    """
    ranks, rank = world_size(group), group_rank(group)
    world: Group = group if group is not None else dist.group.WORLD
    following = dist.get_global_rank(world, (rank + 1) % ranks)
    previous = dist.get_global_rank(world, (rank - 1) % ranks)
    incoming = outgoing.new_empty(shape)
    handles = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, outgoing, following, group=group),
            dist.P2POp(dist.irecv, incoming, previous, group=group),
        ]
    )
    return incoming, handles


def wait_all(handles: list[Any]) -> None:
    for handle in handles:
        handle.wait()
