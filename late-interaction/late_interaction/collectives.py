"""Define the collectives of distributed late interaction, for ranks with different numbers of rows.

Plain functions without gradients, on gloo and NCCL alike; the autograd Functions that use them call them
in the same order on every rank, in the forward and in the backward, which is what keeps them from
deadlocking.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

Group = Any  # a ProcessGroup, or None for the default group; torch's own annotations vary by version

_host_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def world_size(group: Group = None) -> int:
    """Return the number of ranks in the group; 1 when torch.distributed is not initialised."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def group_rank(group: Group = None) -> int:
    return dist.get_rank(group) if world_size(group) > 1 else 0


def use_host_group(host: Group, group: Group = None) -> None:
    """Let ``host``, a gloo group of the same ranks in the same order, carry the counts and lengths of ``group``.

    Every rank needs those of all others as Python numbers before it can score. Through NCCL they arrive on the GPU,
    and reading them waits until it has finished all work so far; through the host nothing waits. A group that can send
    tensors of the CPU itself, as ``init_process_group()`` without a backend makes it, needs no other. All ranks call
    this, or none; with ``host`` None they stop using it.
    """
    if host is None:
        _host_groups.pop(group_key(group), None)
    else:
        _host_groups[group_key(group)] = host


def gather_counts(counts: list[int], device: torch.device, group: Group) -> list[list[int]]:
    """Return every rank's ``counts`` (equally many on each), in rank order, through the host if the group can."""
    talking = _host_groups.get(group_key(group), group)
    on_host = "cpu:" in dist.get_backend_config(talking)
    row = torch.tensor(counts, device="cpu" if on_host else device)
    return _gather(row, talking).view(world_size(group), -1).tolist()


def gather_rows(rows: Tensor, counts: Sequence[int], group: Group) -> Tensor:
    """Gather all ranks' ``rows`` [counts[rank], ...] in rank order.

    They are padded to the longest on the wire and cut on arrival.
    """
    longest = max(counts)
    padded = rows.contiguous()
    if len(rows) < longest:
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
    every = _gather(padded, group)
    if min(counts) == longest:
        return every
    return torch.cat([part[:count] for part, count in zip(every.split(longest), counts, strict=True)])


def reduce_scatter_rows(rows: Tensor, counts: Sequence[int], group: Group) -> Tensor:
    """Sum ``rows`` [sum(counts), ...] over the ranks; each gets its own section of the sum."""
    longest = max(counts)
    padded = rows.contiguous()
    if min(counts) < longest:
        padded = rows.new_zeros(len(counts), longest, *rows.shape[1:])
        for section, part in zip(padded, rows.split(list(counts)), strict=True):
            section[: len(part)] = part
        padded = padded.flatten(0, 1)
    block = rows.new_empty(longest, *rows.shape[1:])
    # PyTorch renames its collectives that take one tensor; those that take lists copy what they send and receive.
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    scatter(block, padded, group=group)
    return block[: counts[group_rank(group)]]


def _gather(own: Tensor, group: Group) -> Tensor:
    every = own.new_empty(world_size(group) * len(own), *own.shape[1:])
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(every, own, group=group)
    return every


def group_key(group: Group) -> Any:
    """Return the group itself, for None too."""
    return group if group is not None else dist.group.WORLD


def all_to_all_blocks(own: Tensor, rows: list[int], columns: list[int], group: Group) -> Tensor:
    """Turn ``own`` [rows[rank], sum(columns)] on each rank into [sum(rows), columns[rank]]: one all-to-all.

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
    world = group_key(group)
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
