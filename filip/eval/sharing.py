"""Several processes that evaluate one model together: each takes every n-th part of the work, and all get the whole.

Parts are whole batches and blocks, the same as for one process, so that every number is the same to the bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch.distributed as dist

from filip.common.device import best_device, own_device
from filip.common.errors import UserError

T = TypeVar("T")


def _alone(own: Any) -> list[Any]:
    return [own]


@dataclass(frozen=True)
class Share:
    """This process among the ones that evaluate together.

    exchange: gives a picklable value to all and returns everybody's, in order of rank; all processes call it.
    """

    rank: int = 0
    ranks: int = 1
    exchange: Callable[[Any], list[Any]] = _alone

    def together(self, count: int, compute: Callable[[Iterable[int]], list[T]]) -> list[T]:
        """Return the results of ``count`` parts, in order. ``compute`` returns the parts with the given numbers.

        An error of one process is raised there, and by the others as a UserError with the same words. Tensors have to
        be on the CPU if there are several processes.
        """
        if self.ranks == 1:
            return compute(range(count))
        results: list[T] = []
        mistake: Exception | None = None
        try:
            results = compute(range(self.rank, count, self.ranks))
        except Exception as error:  # raised below, once the others know of it
            mistake = error
        answers = self.exchange((results, None if mistake is None else str(mistake) or repr(mistake)))
        if mistake is not None:
            raise mistake
        for rank, (_, message) in enumerate(answers):
            if message is not None:
                raise UserError(f"{message} (rank {rank})")
        return [answers[number % self.ranks][0][number // self.ranks] for number in range(count)]


ALONE = Share()


@cache
def launched() -> Share:
    """Return the processes that ``torchrun -m filip.eval.…`` started; otherwise this one alone.

    Also alone inside a training: its ranks share an evaluation in their own way.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1 or "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        return ALONE
    dist.init_process_group("gloo")

    def exchange(own: Any) -> list[Any]:
        gathered: list[Any] = [None] * ranks
        dist.all_gather_object(gathered, own)
        return gathered

    return Share(int(os.environ["RANK"]), ranks, exchange)


def device_of(share: Share) -> str:
    """Return the accelerator of this process: where several share a machine with several, its own."""
    return str(own_device(int(os.environ.get("LOCAL_RANK", "0"))) if share.ranks > 1 else best_device())
