"""Download shards in processes of this machine, and try again when one fails or its worker dies.

A reader cuts the shards out of the list one by one (img2dataset's own reads the whole list into memory), a busy host is
put off, and a worker that is stuck ends itself. (multiprocessing.Pool would wait forever for one that was killed.)
:mod:`filip.data.fetching.shard_maker` makes the files.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pyarrow as pa

from filip.common.errors import UserError
from filip.common.files import write_json
from filip.common.progress import say
from filip.common.worker_pool import die_with_parent
from filip.data.fetching.access import Access, local_root
from filip.data.fetching.fetch import DEADLINE, fetch
from filip.data.fetching.hosts import HOSTS, LOST, PATIENCE, REFUSALS, PatientRows, Result, Row, of_one_host
from filip.data.fetching.outcomes import FORGOTTEN, Forgotten
from filip.data.fetching.shard_maker import (
    WORK,
    PassMaker,
    is_complete,
    progress_file,
    shard_name,
    shard_schema,
    suspects,
)

# Errors of the whole disk: the next shard would fail like this one, after all its URLs were fetched.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
SECONDS_PER_IMAGE = 1.0  # seconds for an image besides the network: far more than decoding and writing take
SECONDS_PER_SHARD = 600.0
MOST_HOSTS = 5  # given up in a shard, that are named

Part = tuple[int, str]  # a shard and the Arrow file with its part of the list


@dataclass(kw_only=True)
class ShardDownloader(PassMaker):
    """Maker of shards of fetched images. It can be pickled to any worker."""

    patient: bool = False  # wait for busy hosts; else a later pass does

    def __post_init__(self) -> None:
        super().__post_init__()
        card, load = self.card, self.card.download
        self.access = Access(card.allow_private_hosts, local_root(card.image_root), load.contact, load.per_host)

    def parts(self, wanted: Collection[int]) -> Iterator[Part]:
        """Yield these shards in order, each with the file of its rows, which is removed when the shard is done."""
        work = self.final_folder / WORK
        work.mkdir(parents=True, exist_ok=True)
        for shard, table in self.rows_of(wanted):
            path = work / f"{shard_name(shard)}.feather"
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            yield shard, str(path)

    def download_shard(self, part: Part) -> None:
        """Download one shard. Raises when it could not be completed, and leaves nothing behind."""
        shard, listed = part[0], Path(part[1])
        with self.staged(shard) as (staging, progress):
            started = time.time()
            with pa.OSFile(str(listed), "rb") as source:
                table = pa.ipc.open_file(source).read_all().select(self.columns)
            rows = table.to_pylist()
            with closing(self._fetched(shard, [str(row["url"] or "") for row in rows])) as fetched:
                images = ((number, data, problem or "") for number, data, problem, _ in fetched)
                stats = self.fill(shard, staging, progress, rows, shard_schema(table.schema), images)
            ended = time.time()
            stats |= {"duration": ended - started, "start_time": started, "end_time": ended}
            write_json(staging / f"{shard_name(shard)}_stats.json", stats)
        listed.unlink(missing_ok=True)

    def _fetched(self, shard: int, urls: list[str]) -> Generator[Result, None, None]:
        """Yield the result of each row, as they come."""
        HOSTS.most_lost = 1 if self.patient else LOST
        skipped, forgotten = self.retried.get(shard, set()), Forgotten.load(self.final_folder)
        given_up = threading.Event()  # the rest is not asked for
        waiting = threading.Semaphore(2 * self.card.download.threads)  # no more images than this wait to be resized

        def bounded(rows: Iterable[Row]) -> Iterator[Row]:
            for row in rows:
                waiting.acquire()
                if given_up.is_set():
                    return
                yield row

        wanted = [(number, url) for number, url in enumerate(urls) if number not in skipped]
        patient = self.patient or of_one_host(wanted)
        patiently = PatientRows(wanted if patient else [])
        rows = patiently if patient else wanted
        for number in sorted(skipped):
            yield number, None, "retried: in a later pass", None
        with ThreadPool(self.card.download.threads) as pool:
            try:
                for result in pool.imap_unordered(partial(self._fetch, forgotten, given_up), bounded(rows)):
                    waiting.release()
                    if not patient or patiently.is_final(result):
                        yield result
            finally:
                given_up.set()
                patiently.close()
                waiting.release()  # a pool waits for its feeding thread, which may wait here
        yield from patiently.left
        for host, count in patiently.given_up.most_common(MOST_HOSTS):
            say(f"download: {host} does nothing but refuse and is given up (URLs that are left: {count})")

    def _fetch(self, forgotten: Forgotten, given_up: threading.Event, row: Row) -> Result:
        number, url = row
        if given_up.is_set():
            return number, None, "other: the shard was given up", None
        if forgotten.refuses(url):
            return number, None, f"{FORGOTTEN}: on request", None
        data, problem, refusing = fetch(url, self.card.download.timeout, self.card.download.retries, access=self.access)
        if data is not None and forgotten.refuses("", data):
            return number, None, f"{FORGOTTEN}: on request", None
        return number, data, problem, refusing


def longest_time(downloader: ShardDownloader) -> float:
    """Return an upper bound on the seconds that a shard takes; a worker that exceeds it is considered stuck."""
    load = downloader.card.download
    rounds = -(-load.samples_per_shard // min(load.threads, load.per_host)) * (load.retries + 1 + REFUSALS)
    working = SECONDS_PER_SHARD + SECONDS_PER_IMAGE * load.samples_per_shard
    return working + rounds * DEADLINE * load.timeout + PATIENCE


@dataclass(frozen=True)
class Outcome:
    """Outcome of a shard in a worker."""

    shard: int
    failure: str | None = None  # why it is not complete
    # errno of a disk that is full or read-only: the next shard would fail like this one
    disk: int | None = None


def run_shard(downloader: ShardDownloader, part: Part, limit: float) -> Outcome:
    """Download one shard, in a worker that ends itself after ``limit`` seconds."""
    # A thread in a system call that never returns (a name server, a network disk) cannot be ended, a process can.
    stuck = threading.Timer(limit, _give_up, (part[0],))
    stuck.daemon = True
    stuck.start()
    try:
        downloader.download_shard(part)
        return Outcome(part[0])
    except Exception as error:
        full = error.errno if isinstance(error, OSError) and error.errno in DISK_FULL else None
        return Outcome(part[0], f"{type(error).__name__}: {error}", full)
    finally:
        stuck.cancel()


def _give_up(shard: int) -> None:
    say(f"download: the worker of shard {shard_name(shard)} is stuck and ends")
    os._exit(1)


SHARDS_PER_WORKER = 20  # image libraries leak: a worker is renewed after so many
SHARD_TRIES = 3  # attempts at a shard after a killed worker or a failed disk
# If all shards in flight were lost so many times in a row, without one done, the fault is not a shard's.
DEAD_WORKERS = 10
DEADLY_IMAGES = 20  # in one shard, one try each: with more of them the fault is not the images'

Submit = Callable[[Part], "Future[Outcome]"]  # the future raises if the worker died


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
            yield lambda part: pool.submit(run_shard, self.downloader, part, self.limit)

    def in_flight(self, alone: bool) -> int:
        return 1 if alone else 2 * self.processes


def download_shards(workers: LocalWorkers, shards: Collection[int], finished: Callable[[int], None]) -> dict[int, str]:
    """Download these shards; calls ``finished(shard)``; returns {shard: why it could not be completed}.

    A shard that failed, or lost its worker, is tried again, SHARD_TRIES times in all. Where one death takes
    others with it, every shard in flight is suspect and is tried one by one, so that only the one at fault fails.
    Raises UserError when the disk is full, or when workers do nothing but die.
    """
    try:
        return _tries(workers, shards, finished)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UserError(
            f"{workers.downloader.final_folder} cannot be written to: {os.strerror(error.errno)}. What is done is "
            "kept: make room and run the same command again"
        ) from error


def _tries(workers: LocalWorkers, shards: Collection[int], finished: Callable[[int], None]) -> dict[int, str]:
    folder, todo = workers.downloader.final_folder, set(shards)
    failures: dict[int, str] = {}
    suspected: set[int] = set()
    deadly: dict[int, int] = {}  # shard: how many of its images are known to kill, or were in progress
    attempt = 0
    while attempt < SHARD_TRIES:
        failures = {}
        todo = {shard for shard in todo if not is_complete(folder, shard)}
        lost: dict[int, str] = {}
        for some, alone in ((todo - suspected, False), (todo & suspected, True)):
            if some:
                lost |= _run_round(workers, workers.downloader.parts(some), alone, finished, failures)
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
    workers: LocalWorkers, parts: Iterator[Part], alone: bool, finished: Callable[[int], None], failures: dict[int, str]
) -> dict[int, str]:
    """Try each of these shards once; return the shards with a dead worker, and the cause."""
    lost: dict[int, str] = {}
    deaths = 0  # since the last finished shard
    while first := list(islice(parts, 1)):
        of_pool = chain(first, islice(parts, workers.shards_per_pool - 1))
        died: dict[int, str] = {}
        with workers.pool(alone) as submit:
            for shard, outcome in _outcomes(workers, submit, of_pool, alone):
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
    workers: LocalWorkers, submit: Submit, parts: Iterable[Part], alone: bool
) -> Iterator[tuple[int, Outcome | str]]:
    """Yield (shard, outcome, or why its worker died) as they come; end early if the pool is broken."""
    running: dict[Future[Outcome], int] = {}
    broken = False
    for part in parts:
        try:
            running[submit(part)] = part[0]
        except BrokenProcessPool as error:
            yield part[0], _death(error)
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
