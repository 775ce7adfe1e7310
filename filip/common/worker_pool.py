"""Run work in blocks, each of which leaves one file, in processes, with progress and an ETA."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for
from typing import Any

from filip.common.errors import UserError
from filip.common.progress import Progress

# How loaders start their workers, on every Python: forked workers share the process's modules, and end with it.
# With Python 3.14's default each worker would import PyTorch, and go on running after the process was killed.
LOADER_START = "fork"


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
    what, unit, total: for the progress, as in :class:`filip.common.progress.Progress`.
    Raises UserError when a worker was killed; files of the other blocks stay, and a rerun continues from there.
    """
    with Progress(what, unit, total) as progress:
        if processes > 1 and len(blocks) > 1:
            _run_in_pool(function, blocks, min(processes, len(blocks)), progress, (start, start_arguments))
            return
        if blocks and start:
            start(*start_arguments)
        for block in blocks:
            progress.add(function(*block))


def _run_in_pool(
    function: Callable[..., int],
    blocks: Sequence[tuple[Any, ...]],
    processes: int,
    progress: Progress,
    start: tuple[Callable[..., None] | None, tuple[Any, ...]],
) -> None:
    # spawn: the parent's threads (DuckDB's) must not be forked
    with ProcessPoolExecutor(processes, get_context("spawn"), _start_worker, start) as pool:
        with deaf_to_ctrl_c():
            futures = [pool.submit(function, *block) for block in blocks]
        try:
            for future in as_completed(futures):
                progress.add(future.result())
        except BrokenProcessPool as error:
            raise UserError(
                f"{progress.what}: a worker process was killed (out of memory?). Finished blocks are kept: run the "
                "same command again, with fewer processes if memory is short"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Let processes that are started meanwhile ignore a terminal's Ctrl-C, from their first import on.

    Their parent ends them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def die_with_parent() -> None:
    """Make this worker process end with its parent: one that outlives it would keep filling the disk."""
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
