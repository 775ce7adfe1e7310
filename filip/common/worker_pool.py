"""Run work in blocks, each of which leaves one file, in processes that may be killed, with progress and an ETA."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for
from typing import Any

from filip.common.errors import UserError
from filip.common.progress import Progress, say

# How loaders start their workers, on every Python: forked workers share the process's modules, and end with it.
# With Python 3.14's default each worker would import PyTorch, and go on running after the process was killed.
LOADER_START = "fork"
TRIES = 3  # attempts at a block after a killed worker, or after a failure where it may pass
# If all blocks in flight were lost so many times in a row, without one done, the fault is not a block's.
DEAD_WORKERS = 10
# Errors of the whole disk: the next block would fail like this one.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
Submit = Callable[[int], "Future[Any]"]  # the future raises if the worker died


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
    Raises UserError when a block's workers are killed; files of the others stay, and a rerun continues from there.
    """
    with Progress(what, unit, total) as progress:
        if processes > 1 and len(blocks) > 1:
            workers = Workers(function, dict(enumerate(blocks)), min(processes, len(blocks)), what)
            workers.start = (start, start_arguments)
            if workers.run(lambda _, count: progress.add(count)):
                raise UserError(
                    f"{what}: a worker process was killed (out of memory?). Finished blocks are kept: run the same "
                    "command again, with fewer processes if memory is short"
                )
            return
        if blocks and start:
            start(*start_arguments)
        for block in blocks:
            progress.add(function(*block))


class Workers:
    """Processes that call ``function(*block)``. Where one is killed, its block is tried again.

    One death takes others with it: every block in flight is then suspect, and is tried alone, so that only the one at
    fault fails.
    """

    context = "spawn"  # the parent's threads (DuckDB's) must not be forked
    start: tuple[Callable[..., None] | None, tuple[Any, ...]] = (None, ())
    blocks_per_worker: int | None = None
    errors_pass = False  # a block that raises is tried again, but for an error of the disk

    def __init__(
        self, function: Callable[..., Any], blocks: Mapping[int, tuple[Any, ...]], processes: int, what: str
    ) -> None:
        """blocks: the arguments of each, by its number."""
        self.function, self.blocks, self.processes, self.what = function, blocks, processes, what

    def is_done(self, block: int) -> bool:
        """Return whether a block is done although its worker was lost."""
        return False

    def further(self, lost: Iterable[int]) -> bool:
        """Return whether the blocks of killed workers will get further at the next try, which then does not count."""
        return False

    @contextmanager
    def pool(self, alone: bool) -> Iterator[Submit]:
        processes = 1 if alone else self.processes
        with ProcessPoolExecutor(processes, get_context(self.context), _start_worker, self.start) as pool:

            def submit(block: int) -> Future[Any]:
                with deaf_to_ctrl_c():
                    return pool.submit(self.function, *self.blocks[block])

            try:
                yield submit
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def in_flight(self, alone: bool) -> int:
        return 1 if alone else 2 * self.processes

    def run(self, finished: Callable[[int, Any], None]) -> dict[int, str]:
        """Do all blocks; call ``finished(block, result)`` as they come; return {block: why it failed}.

        Raises UserError when workers do nothing but die.
        """
        todo, suspected, failures, attempt = list(self.blocks), set[int](), dict[int, str](), 0
        while todo and attempt < TRIES:
            failures = {}
            lost: dict[int, str] = {}
            for alone in (False, True):
                lost |= self._round([n for n in todo if (n in suspected) == alone], alone, finished, failures)
            suspected |= set(lost)
            failures |= lost
            todo = sorted(failures)
            attempt += not self.further(lost)
            for block in todo[:5]:
                say(f"{self.what}: {block:05d}: {failures[block]}; {'again' if attempt < TRIES else 'given up'}")
        return failures

    def _round(
        self, blocks: list[int], alone: bool, finished: Callable[[int, Any], None], failures: dict[int, str]
    ) -> dict[int, str]:
        """Try each of these blocks once; return those with a dead worker, and the cause."""
        lost: dict[int, str] = {}
        deaths, left = 0, iter(blocks)  # since the last block that ended
        more = self.blocks_per_worker and self.blocks_per_worker * self.processes - 1
        while first := list(islice(left, 1)):
            died: dict[int, str] = {}
            with self.pool(alone) as submit:
                for block, future in self._futures(submit, chain(first, islice(left, more)), alone):
                    error = future.exception()
                    deaths = deaths + 1 if isinstance(error, BrokenProcessPool) else 0
                    if error is None:
                        finished(block, future.result())
                    elif isinstance(error, BrokenProcessPool):
                        died[block] = "its worker was killed (out of memory?) or stuck"
                    elif not self.errors_pass or getattr(error, "errno", None) in DISK_FULL:
                        raise error
                    else:
                        failures[block] = str(error)
                    if deaths >= DEAD_WORKERS * self.in_flight(alone):
                        raise UserError(
                            f"{self.what}: {deaths} workers in a row died before any ended its block ({died[block]}; a "
                            "broken installation?). Finished blocks are kept: fix the cause, or give fewer processes "
                            "and threads, and run the same command again"
                        )
            if died:
                say(
                    f"{self.what}: a worker was killed (out of memory?) or stuck; in progress were "
                    f"{', '.join(f'{block:05d}' for block in sorted(died))}: they are tried again after the others"
                )
            for block in sorted(died):
                if self.is_done(block):
                    finished(block, None)
                else:
                    lost[block] = died[block]
        return lost

    def _futures(self, submit: Submit, blocks: Iterable[int], alone: bool) -> Iterator[tuple[int, Future[Any]]]:
        """Yield each block with its ended future, as they come; end early if the pool is broken."""
        running: dict[Future[Any], int] = {}
        broken = False
        for block in blocks:
            try:
                running[submit(block)] = block
            except BrokenProcessPool as error:
                failed: Future[Any] = Future()
                failed.set_exception(error)
                yield block, failed
                break
            while running and len(running) >= self.in_flight(alone):
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    broken |= isinstance(future.exception(), BrokenProcessPool)
                    yield running.pop(future), future
            if broken:
                break
        for future in as_completed(running):
            yield running[future], future


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
