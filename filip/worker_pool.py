"""Work that is cut into blocks, each of which leaves one file: run in processes, with progress and an ETA."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for
from typing import Any

from filip.errors import UserError

SECONDS_BETWEEN_LINES = 5


def run_blocks(
    function: Callable[..., int],
    blocks: Sequence[tuple[Any, ...]],
    processes: int,
    *,
    what: str,
    unit: str,
    total: int,
    start: Callable[..., None] | None = None,
    start_arguments: tuple[Any, ...] = (),
) -> None:
    """Call ``function(*block)``, which returns how many items it handled, for every block.

    ``start(*start_arguments)`` runs once in each worker. With one process, or one block, nothing is spawned.
    what, unit, total: for the line on stderr ("translate pt: 1,024 of 9,000 captions, ...").
    Raises UserError when a worker was killed; what the other blocks left stays, and a rerun goes on from there.
    """
    progress = _Progress(what, unit, total)
    if processes <= 1 or len(blocks) <= 1:
        if blocks and start:
            start(*start_arguments)
        for block in blocks:
            progress.add(function(*block))
        return
    # spawn: the parent's threads (DuckDB's) must not be forked
    with ProcessPoolExecutor(
        min(processes, len(blocks)), get_context("spawn"), _start_worker, (start, start_arguments)
    ) as pool:
        futures = [pool.submit(function, *block) for block in blocks]
        try:
            for future in as_completed(futures):
                progress.add(future.result())
        except BrokenProcessPool as error:
            raise UserError(
                f"{what}: a worker process was killed (out of memory?). Finished blocks are kept: run the same "
                "command again, with fewer processes if memory is short"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def die_with_parent() -> None:
    """To be called in a worker process: a worker that outlives its parent would go on and fill the disk."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        # a pipe that only the parent holds open; not getppid(), which may be a fork server's number
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start_worker(start: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    die_with_parent()
    if start:
        start(*arguments)


class _Progress:
    def __init__(self, what: str, unit: str, total: int) -> None:
        self.what, self.unit, self.total, self.done = what, unit, total, 0
        self.started = self.told = time.monotonic()

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.told >= SECONDS_BETWEEN_LINES:
            self.told = now
            rate = self.done / (now - self.started)
            print(
                f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {rate:,.0f}/s, "
                f"{(self.total - self.done) / max(rate, 1e-9):,.0f} s left",
                file=sys.stderr,
                flush=True,
            )
