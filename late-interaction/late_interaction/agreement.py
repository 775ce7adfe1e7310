"""Let ranks agree before the first token is sent, so that a mistake on one is an error on all.

Without it a rank that raises, or that calls with another dtype, leaves the others waiting in a collective until the
group's time-out, or sends them bytes that they misread. The description travels with the counts that every rank needs
anyway, so it costs no further message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from late_interaction.collectives import Group, gather_counts, group_key

FUNCTIONS = ("distributed_late_interaction", "distributed_pooled_similarity", "gather_ids")
EXCHANGES = ("gather", "ring")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MESSAGE_BYTES = 500
_rooms: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # lengths that a message holds, equal on all ranks


class Call(NamedTuple):
    """A rank's call in integers. All but the two counts must be the same on every rank."""

    function: int = 0
    valid: int = 0  # 0: this rank has found a mistake
    images: int = 0
    texts: int = 0
    features: int = 0
    image_dtype: int = 0  # the dtype in which they are multiplied
    text_dtype: int = 0
    exchange: int = 0
    image_gradient: int = 0
    text_gradient: int = 0


_MUST_AGREE: dict[str, tuple[str, Callable[[int], str], str]] = {
    "features": ("the number of features", str, "use one width"),
    "image_dtype": ("the dtype of the image tokens", lambda code: str(_DTYPES[code]), "use one dtype"),
    "text_dtype": ("the dtype of the text tokens", lambda code: str(_DTYPES[code]), "use one dtype"),
    "exchange": ("exchange", lambda code: repr(EXCHANGES[code]), "pass the same one"),
    "image_gradient": ("whether image tokens need a gradient", lambda flag: "yes" if flag else "no",
                       "freeze a tower on all ranks or on none"),
    "text_gradient": ("whether text tokens need a gradient", lambda flag: "yes" if flag else "no",
                      "freeze a tower on all ranks or on none"),
}  # fmt: skip


def describe(
    function: str, image: Tensor, text: Tensor, texts: int, exchange: str = "gather", dtype: torch.dtype | None = None
) -> Call:
    """Describe the call of ``function`` with these tokens (or vectors), multiplied in ``dtype`` (default: theirs)."""
    needs = torch.is_grad_enabled()
    return Call(
        FUNCTIONS.index(function),
        1,
        len(image),
        texts,
        image.shape[-1],
        _DTYPES.index(dtype or image.dtype),
        _DTYPES.index(dtype or text.dtype),
        EXCHANGES.index(exchange),
        int(needs and image.requires_grad),
        int(needs and text.requires_grad),
    )


def exchange_calls(
    own: Call | Exception, device: torch.device, group: Group, lengths: Sequence[int] = ()
) -> tuple[list[Call], list[list[int]]]:
    """Return every rank's call and its text ``lengths``, in rank order; ``own`` is this rank's call.

    If this rank has refused its arguments, ``own`` is the exception: then it raises that, and every other rank raises a
    ValueError with the same sentence. If the calls do not fit together, all raise the same ValueError.

    One message, with room for as many lengths as any rank has had so far; a second one when a rank needs more.
    """
    mistake = own if isinstance(own, Exception) else None
    call = Call() if isinstance(own, Exception) else own
    room = _rooms.get(group_key(group), 0)
    gathered = gather_counts([*call, *_filled(lengths[:room], room)], device, group)
    calls = [Call(*numbers[: len(call)]) for numbers in gathered]
    if not all(other.valid for other in calls):
        sentences = _gather_messages(str(mistake or ""), device, group)
        if mistake is not None:
            raise mistake
        rank = next(rank for rank, other in enumerate(calls) if not other.valid)
        raise ValueError(f"rank {rank} of {len(calls)} refused its arguments: {sentences[rank]}")
    _compare(calls)
    every = [numbers[len(call) :] for numbers in gathered]
    most = max(other.texts for other in calls)
    if lengths and most > room:
        room = _rooms[group_key(group)] = 1 << (most - 1).bit_length()
        every = gather_counts(_filled(lengths, room), device, group)
    return calls, [part[: other.texts] for part, other in zip(every, calls, strict=True)]


def _filled(lengths: Sequence[int], room: int) -> list[int]:
    return [*lengths, *[0] * (room - len(lengths))]


def _compare(calls: list[Call]) -> None:
    if len({call.function for call in calls}) > 1:
        names = ", ".join(f"{FUNCTIONS[call.function]} on rank {rank}" for rank, call in enumerate(calls))
        raise ValueError(f"the ranks called different functions: {names}; call them in the same order")
    for name, (what, show, remedy) in _MUST_AGREE.items():
        values: list[int] = [getattr(call, name) for call in calls]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            raise ValueError(
                f"the ranks of {FUNCTIONS[calls[0].function]} disagree on {what}: {show(values[0])} on rank 0, "
                f"{show(values[other])} on rank {other}; {remedy}"
            )


def _gather_messages(own: str, device: torch.device, group: Group) -> list[str]:
    encoded = own.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b"\0")
    return [
        bytes(other).rstrip(b"\0").decode(errors="replace") for other in gather_counts(list(encoded), device, group)
    ]
