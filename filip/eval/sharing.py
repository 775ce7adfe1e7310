"""Several processes that evaluate one model together: each takes every n-th part of the work, and all get all of it.

Parts are whole batches and blocks, the same as for one process, so that every number is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from filip.errors import UserError

T = TypeVar("T")


def _alone(own: Any) -> list[Any]:
    return [own]


@dataclass(frozen=True)
class Share:
    """This process among those that evaluate together.

    exchange: gives a picklable value to all and returns everybody's, in order of rank; all processes call it.
    """

    rank: int = 0
    ranks: int = 1
    exchange: Callable[[Any], list[Any]] = _alone

    def together(self, count: int, compute: Callable[[Iterable[int]], list[T]]) -> list[T]:
        """The results of ``count`` parts, in order. ``compute`` returns those of the numbers that it is given.

        What one process raises is raised by it, and as a UserError with the same words by the others. Tensors have to
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
