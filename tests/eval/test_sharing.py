"""Processes that evaluate together, as threads: a mistake of one is known to all."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

from filip.common.errors import UserError
from filip.eval.scorer import Share


def in_threads(ranks: int, work: Callable[[Share], Any]) -> list[Any]:
    """Return ``work(share)`` of each rank, or the exception that it raised."""
    barrier = threading.Barrier(ranks, timeout=60)
    given: list[Any] = [None] * ranks
    outcomes: list[Any] = [None] * ranks

    def run(rank: int) -> None:
        def exchange(own: Any) -> list[Any]:
            given[rank] = own
            barrier.wait()
            answers = list(given)
            barrier.wait()
            return answers

        try:
            outcomes[rank] = work(Share(rank, ranks, exchange))
        except Exception as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_what_one_rank_raises_all_raise() -> None:
    def compute(numbers: Iterable[int]) -> list[int]:
        if 1 in numbers:
            raise OSError("the disk is gone")
        return list(numbers)

    first, second, third = in_threads(3, lambda share: share.together(6, compute))
    assert isinstance(second, OSError)
    for other in (first, third):
        assert isinstance(other, UserError) and str(other) == "the disk is gone (rank 1)"
