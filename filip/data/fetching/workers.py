"""Download shards in processes of this machine, and try again when one fails or its worker dies.

A busy host is put off, and a worker that is stuck ends itself. (multiprocessing.Pool would wait forever for one that
was killed.) :mod:`filip.data.fetching.shard_maker` makes the files.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from multiprocessing.pool import ThreadPool

from filip.common.errors import UserError
from filip.common.files import write_json
from filip.common.progress import say
from filip.common.worker_pool import DISK_FULL, Workers
from filip.data.fetching.access import Access, local_root
from filip.data.fetching.fetch import DEADLINE, fetch
from filip.data.fetching.hosts import HOSTS, LOST, PATIENCE, REFUSALS, PatientRows, Result, Row, of_one_host
from filip.data.fetching.outcomes import FORGOTTEN, Forgotten
from filip.data.fetching.shard_maker import PassMaker, is_complete, progress_file, shard_name, shard_schema, suspects

SECONDS_PER_IMAGE = 1.0  # seconds for an image besides the network: far more than decoding and writing take
SECONDS_PER_SHARD = 600.0
MOST_HOSTS = 5  # given up in a shard, that are named


@dataclass(kw_only=True)
class ShardDownloader(PassMaker):
    """Maker of shards of fetched images. It can be pickled to any worker."""

    patient: bool = False  # wait for busy hosts; else a later pass does

    def __post_init__(self) -> None:
        super().__post_init__()
        card, load = self.card, self.card.download
        self.access = Access(card.allow_private_hosts, local_root(card.image_root), load.contact, load.per_host)

    def download_shard(self, shard: int) -> None:
        """Download one shard. Raises when it could not be completed, and leaves nothing behind."""
        with self.staged(shard) as (staging, progress):
            started = time.time()
            table = self.rows_of(shard)
            rows = table.to_pylist()
            with closing(self._fetched(shard, [str(row["url"] or "") for row in rows])) as fetched:
                images = ((number, data, problem or "") for number, data, problem, _ in fetched)
                stats = self.fill(shard, staging, progress, rows, shard_schema(table.schema), images)
            ended = time.time()
            stats |= {"duration": ended - started, "start_time": started, "end_time": ended}
            write_json(staging / f"{shard_name(shard)}_stats.json", stats)

    def _fetched(self, shard: int, urls: list[str]) -> Generator[Result, None, None]:
        """Yield the result of each row, as they come."""
        HOSTS.most_lost = 1 if self.patient else LOST
        skipped, forgotten = self.left_out.get(shard, set()), Forgotten.load(self.final_folder)
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


def run_shard(downloader: ShardDownloader, limit: float, shard: int) -> None:
    """Download one shard, in a worker that ends itself after ``limit`` seconds."""
    # A thread in a system call that never returns (a name server, a network disk) cannot be ended, a process can.
    stuck = threading.Timer(limit, _give_up, (shard,))
    stuck.daemon = True
    stuck.start()
    try:
        downloader.download_shard(shard)
    except Exception as error:  # in a form that reaches another process
        text, number = f"{type(error).__name__}: {error}", getattr(error, "errno", None)
        raise (OSError(number, text) if number in DISK_FULL else RuntimeError(text)) from None
    finally:
        stuck.cancel()


def _give_up(shard: int) -> None:
    say(f"download: the worker of shard {shard_name(shard)} is stuck and ends")
    os._exit(1)


DEADLY_IMAGES = 20  # in one shard, one try each: with more of them the fault is not the images'


class ShardWorkers(Workers):
    """Processes that download shards, forked from a server that ``filip.data.download`` started with its imports."""

    context = "forkserver"
    blocks_per_worker = 20  # image libraries leak: a worker is renewed after so many shards
    errors_pass = True

    def __init__(self, downloader: ShardDownloader, shards: Collection[int]) -> None:
        todo, load = {shard: (shard,) for shard in sorted(shards)}, downloader.card.download
        processes = min(load.processes, len(todo))
        # no shard takes more seconds than this: a worker that does is considered stuck
        rounds = -(-load.samples_per_shard // min(load.threads, load.per_host)) * (load.retries + 1 + REFUSALS)
        working = SECONDS_PER_SHARD + SECONDS_PER_IMAGE * load.samples_per_shard
        limit = working + rounds * DEADLINE * load.timeout + PATIENCE
        super().__init__(partial(run_shard, downloader, limit), todo, processes, "download, shard")
        self.folder = downloader.final_folder
        self.deadly: dict[int, int] = {}  # shard: how many of its images are known to kill, or were in progress

    def is_done(self, block: int) -> bool:
        return is_complete(self.folder, block)

    def further(self, lost: Iterable[int]) -> bool:
        """Return whether an image in progress will be tested first, so that the next try gets further."""
        now = {shard: len(suspects(progress_file(self.folder, shard))) for shard in lost}
        further = any(self.deadly.get(shard, 0) < count <= DEADLY_IMAGES for shard, count in now.items())
        self.deadly |= now
        return further


def download_shards(
    downloader: ShardDownloader, shards: Collection[int], finished: Callable[[int], None]
) -> dict[int, str]:
    """Download these shards; call ``finished(shard)``; return {shard: why it could not be completed}.

    Raises UserError when the disk is full, or when workers do nothing but die.
    """
    try:
        return ShardWorkers(downloader, shards).run(lambda shard, _: finished(shard))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise UserError(
            f"{downloader.final_folder} cannot be written to: {os.strerror(error.errno or 0)}. What is done is kept: "
            "make room and run the same command again"
        ) from error
