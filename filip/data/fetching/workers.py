"""Give shards to workers, and try again when one fails or its worker dies.

The workers are processes of this machine (multiprocessing.Pool would wait forever for one that was killed).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from multiprocessing import get_context

from filip.data.fetching.shard_maker import is_complete, progress_file, shard_name, suspects
from filip.data.fetching.shards import DISK_FULL, ListReader, Outcome, ShardDownloader, longest_time, run_shard
from filip.errors import UserError
from filip.progress import say
from filip.worker_pool import die_with_parent

SHARDS_PER_WORKER = 20  # image libraries leak: a worker is renewed after so many
SHARD_TRIES = 3  # attempts at a shard after a killed worker or a failed disk
# If all shards in flight were lost so many times in a row, without one done, the fault is not a shard's.
DEAD_WORKERS = 10
DEADLY_IMAGES = 20  # in one shard, one try each: with more of them the fault is not the images'

Row = tuple[int, str]  # a shard and the file with its part of the list
Submit = Callable[[Row], "Future[Outcome]"]  # the future raises if the worker died


class LocalWorkers:
    """Processes of this machine, forked from a server that ``filip.data.download`` started with its imports."""

    def __init__(self, downloader: ShardDownloader, processes: int) -> None:
        self.downloader, self.processes = downloader, processes
        self.shards_per_pool = SHARDS_PER_WORKER * processes
        self.limit = longest_time(downloader)

    @contextmanager
    def pool(self, alone: bool) -> Iterator[Submit]:
        processes = 1 if alone else self.processes
        with ProcessPoolExecutor(processes, get_context("forkserver"), die_with_parent) as pool:
            yield lambda row: pool.submit(run_shard, self.downloader, row, self.limit)

    def in_flight(self, alone: bool) -> int:
        return 1 if alone else 2 * self.processes


def download_shards(workers: LocalWorkers, reader: ListReader, finished: Callable[[int], None]) -> dict[int, str]:
    """Download the reader's wanted shards; calls ``finished(shard)``; returns {shard: why it could not be completed}.

    A shard that failed, or lost its worker, is tried again, SHARD_TRIES times in all. Where one death takes
    others with it, every shard in flight is suspect and is tried one by one, so that only the one at fault fails.
    Raises UserError when the disk is full, or when workers do nothing but die.
    """
    try:
        return _tries(workers, reader, finished)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UserError(
            f"{workers.downloader.final_folder} cannot be written to: {os.strerror(error.errno)}. What is done is "
            "kept: make room and run the same command again"
        ) from error


def _tries(workers: LocalWorkers, reader: ListReader, finished: Callable[[int], None]) -> dict[int, str]:
    folder, todo = workers.downloader.final_folder, set(reader.wanted)
    failures: dict[int, str] = {}
    suspected: set[int] = set()
    deadly: dict[int, int] = {}  # shard: how many of its images are known to kill, or were in progress
    attempt = 0
    while attempt < SHARD_TRIES:
        failures = {}
        todo = {shard for shard in todo if not is_complete(folder, shard)}
        lost: dict[int, str] = {}
        for shards, alone in ((todo - suspected, False), (todo & suspected, True)):
            reader.wanted = shards
            if shards:
                lost |= _run_round(workers, reader, alone, finished, failures)
        suspected |= set(lost)
        failures |= lost
        if not failures:
            break
        # An image in progress is tested before the next try, so that it gets further than this one did.
        now = {shard: len(suspects(progress_file(folder, shard))) for shard in lost}
        further = any(deadly.get(shard, 0) < count <= DEADLY_IMAGES for shard, count in now.items())
        deadly |= now
        attempt += not further
        again = "again" if attempt < SHARD_TRIES else "given up"
        for shard, failure in sorted(failures.items())[:5]:
            say(f"download: shard {shard_name(shard)}: {failure}; {again}")
    return failures


def _run_round(
    workers: LocalWorkers, reader: ListReader, alone: bool, finished: Callable[[int], None], failures: dict[int, str]
) -> dict[int, str]:
    """Try each of the reader's wanted shards once; return the shards with a dead worker, and the cause."""
    lost: dict[int, str] = {}
    deaths = 0  # since the last finished shard
    rows = iter(reader)
    while first := list(islice(rows, 1)):
        part = chain(first, islice(rows, workers.shards_per_pool - 1))
        died: dict[int, str] = {}
        with workers.pool(alone) as submit:
            for shard, outcome in _outcomes(workers, submit, part, alone):
                if isinstance(outcome, str):
                    died[shard] = outcome
                    deaths += 1
                elif outcome.disk is not None:
                    raise OSError(outcome.disk, outcome.failure)
                elif outcome.failure is None:
                    deaths = 0
                    finished(shard)
                else:
                    deaths = 0
                    failures[shard] = outcome.failure
                if deaths >= DEAD_WORKERS * workers.in_flight(alone):
                    raise UserError(
                        f"download: {deaths} workers in a row died before any finished a shard ({died[shard]}; out of "
                        "memory? a broken installation?). Finished shards are kept: fix the cause, or give fewer "
                        "processes and threads, and run the same command again"
                    )
        if died:
            names = ", ".join(map(shard_name, sorted(died)))
            say(
                f"download: a worker was killed (out of memory?) or stuck; in progress were shards {names}: they are "
                "tried again after the others"
            )
        for shard, why in sorted(died.items()):
            if is_complete(workers.downloader.final_folder, shard):
                finished(shard)
            else:
                lost[shard] = why
    return lost


def _outcomes(
    workers: LocalWorkers, submit: Submit, rows: Iterable[Row], alone: bool
) -> Iterator[tuple[int, Outcome | str]]:
    """Yield (shard, outcome, or why its worker died) as they come; end early if the pool is broken."""
    running: dict[Future[Outcome], int] = {}
    broken = False
    for row in rows:
        try:
            running[submit(row)] = row[0]
        except BrokenProcessPool as error:
            yield row[0], _death(error)
            break
        while running and len(running) >= workers.in_flight(alone):
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                broken |= future.exception() is not None
                yield running.pop(future), _result(future)
        if broken:
            break
    for future in as_completed(running):
        yield running[future], _result(future)


def _result(future: Future[Outcome]) -> Outcome | str:
    error = future.exception()
    return future.result() if error is None else _death(error)


def _death(error: BaseException) -> str:
    if isinstance(error, BrokenProcessPool):
        return "its worker was killed (out of memory?) or stuck"
    return f"its worker failed: {str(error).strip().split('. ')[0]}"
