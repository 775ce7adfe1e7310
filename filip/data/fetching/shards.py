"""img2dataset's shards, made atomic, ordered and robust against killed workers.

img2dataset's ``Downloader`` does the work of a shard, on whatever its distributors run on. Around it:

- a reader that cuts shards out of the list one by one (img2dataset's own reads the whole list into memory),
- a writer with the same layout, but with samples in the order of the list and without time stamps: the same
  responses give the same bytes, whichever thread was faster,
- a shard appears under its name only when it is complete, its ``_stats.json`` last,
- a process pool that notices when a worker was killed (multiprocessing.Pool waits forever) or is stuck,
- an image that kills whoever decodes it is given up alone; a full disk ends the run at once.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import img2dataset.downloader
import pyarrow as pa
import pyarrow.parquet as pq

from filip.data.fetching.access import Access
from filip.data.fetching.fetch import DEADLINE, LONGEST_WAIT, fetch
from filip.data.fetching.in_progress import CRASHED, InProgress, suspects
from filip.data.fetching.ordered_writer import OrderedWriter
from filip.data.fetching.revision import RETRIED
from filip.data.lists.parquet_rows import tables
from filip.errors import UserError
from filip.progress import say
from filip.worker_pool import die_with_parent

SHARD_DIGITS = 5  # img2dataset's oom_shard_count
WORK = "_work"  # folder inside the shards' folder: plan, lists of retries, half-finished shards
SHARDS_PER_WORKER = 20
SHARDS_PER_JOB = 1000  # of Spark: the lists of so many shards wait on disk at once
SHARD_TRIES = 3  # of a shard whose worker was killed or whose disk failed
DEAD_POOLS = 10  # in a row, without one shard done: the fault is not a shard's
DEADLY_IMAGES = 20  # in one shard, one try each: with more of them the fault is not the images'
# Of the disk as a whole: the next shard would fail like this one, after all its URLs were asked for.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
SECONDS_PER_IMAGE = 1.0  # in addition to the network: far more than decoding and writing take
SECONDS_PER_SHARD = 600.0


def shard_name(shard: int) -> str:
    return f"{shard:0{SHARD_DIGITS}d}"


class ListReader:
    """Cuts a URL list into shards; iterating gives what img2dataset's distributors take: (shard, Arrow file)."""

    def __init__(
        self, path: Path, rows_per_shard: int, first_shard: int, columns: list[str], work: Path
    ) -> None:
        self.path, self.rows_per_shard, self.first_shard, self.columns = (
            path,
            rows_per_shard,
            first_shard,
            columns,
        )
        self.work = work
        self.wanted: set[int] = set()

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """The wanted shards in order. Each file is removed by the Downloader when its shard is done."""
        self.work.mkdir(parents=True, exist_ok=True)
        for shard, table in enumerate(tables(self.path, self.rows_per_shard, self.columns), self.first_shard):
            if shard in self.wanted:
                path = self.work / f"{shard_name(shard)}.feather"
                with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                    writer.write_table(table)
                yield shard, str(path)


class ShardDownloader(img2dataset.downloader.Downloader):
    """img2dataset's Downloader with the bounded fetch; a shard is moved to its place when it is complete."""

    def __init__(self, final_folder: Path, access: Access, **options: Any) -> None:
        super().__init__(output_folder="", **options)
        self.final_folder, self.access = final_folder, access
        self.decoder = options["resizer"]
        self.retried: dict[
            int, set[int]
        ] = {}  # shard: rows that a later pass has; they are not fetched again

    def download_shard(self, row: tuple[int, str]) -> None:
        """Download one shard. Raises when it could not be completed, and leaves nothing behind."""
        shard = row[0]
        name = shard_name(shard)
        staging = self.final_folder / WORK / f"{name}.{os.uname().nodename}.{os.getpid()}"
        shutil.rmtree(staging, ignore_errors=True)  # of a killed worker that had the same number
        staging.mkdir(parents=True)
        self.output_folder = str(staging)
        progress = InProgress(progress_file(self.final_folder, shard))
        self.resizer = partial(_decode, self.decoder, progress)
        self.sample_writer_class = self._writer
        self.skipped = self.retried.get(shard, set())
        complete = False
        try:
            # the one function that has to be replaced inside the module: download_shard looks it up there
            with mock.patch.object(img2dataset.downloader, "download_image_with_retry", self._fetch):
                super().download_shard(row)
            stats = json.loads((staging / f"{name}_stats.json").read_text())
            rows = pq.read_metadata(staging / f"{name}.parquet").num_rows
            if rows != stats["count"]:
                raise OSError(f"{stats['count'] - rows} of {stats['count']} samples were not written")
            for suffix in (".tar", ".index", ".parquet", "_stats.json"):
                os.replace(staging / f"{name}{suffix}", self.final_folder / f"{name}{suffix}")
            complete = True
        finally:
            progress.close(complete)
            shutil.rmtree(staging, ignore_errors=True)

    def _writer(self, *arguments: Any) -> OrderedWriter:
        self.writer = OrderedWriter(*arguments)
        return self.writer

    def _fetch(self, row: tuple[int, str], **options: Any) -> tuple[int, io.BytesIO | None, str | None]:
        if self.writer.failure:
            return row[0], None, "other: the shard was given up"  # no use asking for what cannot be stored
        if row[0] in self.skipped:
            return row[0], None, f"{RETRIED}in a later pass"
        key, data, problem = fetch(row, access=self.access, **options)
        return key, None if data is None else Body(key, data.getvalue()), problem


class Body(io.BytesIO):
    """The bytes of an image that know its number in the shard: img2dataset hands the resizer nothing else."""

    def __init__(self, number: int, data: bytes) -> None:
        super().__init__(data)
        self.number = number


def _decode(resizer: Any, progress: InProgress, body: Body, blurring: Any = None) -> tuple[Any, ...]:
    if not progress.survives(body.number, resizer, io.BytesIO(body.getvalue())):
        return None, None, None, None, None, CRASHED
    return tuple(resizer(body, blurring))


def progress_file(folder: Path, shard: int) -> Path:
    return folder / WORK / f"{shard_name(shard)}.progress"


def longest_time(downloader: ShardDownloader) -> float:
    """Upper bound on the seconds that a shard takes; a worker that exceeds it is considered stuck."""
    rows = downloader.number_sample_per_shard
    rounds = -(-rows // downloader.thread_count) * (downloader.retries + 1)
    return (
        SECONDS_PER_SHARD + SECONDS_PER_IMAGE * rows + rounds * (DEADLINE * downloader.timeout + LONGEST_WAIT)
    )


def _run_shard(downloader: ShardDownloader, row: tuple[int, str], limit: float) -> tuple[int, str | None]:
    """In a worker: (shard, None), or (shard, why it failed). After ``limit`` seconds the worker ends itself."""
    # A thread in a system call that never returns (a name server, a network disk) cannot be ended, a process can.
    stuck = threading.Timer(limit, _give_up, (row[0],))
    stuck.daemon = True
    stuck.start()
    try:
        downloader.download_shard(row)
        return row[0], None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise  # ends the run
        return row[0], f"{type(error).__name__}: {error}"
    finally:
        stuck.cancel()


def _give_up(shard: int) -> None:
    say(f"download: the worker of shard {shard_name(shard)} is stuck and ends")
    os._exit(1)


def run_processes(
    downloader: ShardDownloader, reader: ListReader, processes: int, finished: Callable[[int], None]
) -> dict[int, str]:
    """Download the reader's wanted shards in ``processes``; calls ``finished(shard)``; returns {shard: failure}.

    A shard that failed, or whose worker was killed, is tried again, SHARD_TRIES times in all. When a worker dies,
    all shards in flight are suspect; they are tried again one by one, so that only the one at fault fails.
    """
    folder, todo = downloader.final_folder, set(reader.wanted)
    failures: dict[int, str] = {}
    suspected: set[int] = set()
    deadly: dict[int, int] = {}  # shard: how many of its images are known to kill, or were in progress
    attempt = 0
    while attempt < SHARD_TRIES:
        failures = {}
        todo = {shard for shard in todo if not is_complete(folder, shard)}
        lost: set[int] = set()
        for shards, workers, max_in_flight in (
            (todo - suspected, processes, 2 * processes),
            (todo & suspected, 1, 1),
        ):
            reader.wanted = shards
            lost |= _run_round(downloader, reader, workers, max_in_flight, finished, failures)
        suspected |= lost
        failures |= dict.fromkeys(lost, "its worker was killed (out of memory?) or stuck")
        if not failures:
            break
        # An image in progress is tested before the next try, so that one gets further than this one did.
        now = {shard: len(suspects(progress_file(folder, shard))) for shard in lost}
        further = any(deadly.get(shard, 0) < count <= DEADLY_IMAGES for shard, count in now.items())
        deadly |= now
        attempt += not further
        again = "again" if attempt < SHARD_TRIES else "given up"
        for shard, failure in sorted(failures.items())[:5]:
            say(f"download: shard {shard_name(shard)}: {failure}; {again}")
    return failures


def _run_round(
    downloader: ShardDownloader,
    reader: ListReader,
    processes: int,
    max_in_flight: int,
    finished: Callable[[int], None],
    failures: dict[int, str],
) -> set[int]:
    """Try each of the reader's wanted shards once; returns those that were in flight when a worker died."""
    # its fork server was started, and told what to import, by filip.data.download
    context = get_context("forkserver")
    lost: set[int] = set()
    dead_pools = 0
    rows = iter(reader)
    # A new pool every few shards: image libraries leak, and img2dataset renews its workers for it, too.
    while batch := list(islice(rows, 1)):
        part = chain(batch, islice(rows, SHARDS_PER_WORKER * processes - 1))
        in_flight: set[int] = set()
        with ProcessPoolExecutor(processes, context, die_with_parent) as pool:
            try:
                for shard, failure in _outcomes(pool, downloader, part, max_in_flight, in_flight):
                    in_flight.remove(shard)
                    dead_pools = 0
                    if failure is None:
                        finished(shard)
                    else:
                        failures[shard] = failure
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise
                raise UserError(
                    f"{downloader.final_folder} cannot be written to: {os.strerror(error.errno)}. What is done is "
                    "kept: make room and run the same command again"
                ) from error
            except BrokenProcessPool:
                lost |= in_flight
                dead_pools += 1
                names = ", ".join(map(shard_name, sorted(in_flight)))
                say(
                    f"download: a worker was killed (out of memory?) or stuck; in progress were shards {names}: "
                    "they are tried again after the others, one by one"
                )
        if dead_pools == DEAD_POOLS:
            raise UserError(
                f"download: {DEAD_POOLS} times in a row the worker processes died before any finished a shard (out "
                "of memory? a broken installation?). Finished shards are kept: fix the cause, or give fewer processes "
                "and threads, and run the same command again"
            )
    completed = {shard for shard in lost if is_complete(downloader.final_folder, shard)}
    for shard in sorted(completed):
        finished(shard)
    return lost - completed


def is_complete(folder: Path, shard: int) -> bool:
    return all(
        (folder / f"{shard_name(shard)}{suffix}").exists() for suffix in (".tar", ".parquet", "_stats.json")
    )


def _outcomes(
    pool: ProcessPoolExecutor,
    downloader: ShardDownloader,
    rows: Iterable[tuple[int, str]],
    max_in_flight: int,
    in_flight: set[int],
) -> Iterator[tuple[int, str | None]]:
    """Results as they come, with at most ``max_in_flight`` shards in flight: the list is cut only as fast as needed.

    Each shard is put into ``in_flight``; the caller takes it out.
    """
    running: set[Future[tuple[int, str | None]]] = set()
    limit = longest_time(downloader)
    for row in rows:
        in_flight.add(row[0])
        running.add(pool.submit(_run_shard, downloader, row, limit))
        if len(running) >= max_in_flight:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    for future in running:
        yield future.result()


def run_cluster(
    distributor: str, downloader: ShardDownloader, reader: ListReader, processes: int
) -> dict[int, str]:
    """The same on a Spark or Ray cluster, by img2dataset's own distributors.

    The folder of the shards has to be one that all machines see. Spark: the active session, else one on
    SPARK_MASTER, else local mode with ``processes`` threads. Ray: RAY_ADDRESS, else this machine.
    """
    from img2dataset import distributor as distributors

    wanted = set(reader.wanted)
    try:
        if distributor == "pyspark":
            from pyspark.sql import SparkSession

            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
            if SparkSession.getActiveSession() is None:
                # img2dataset would start one with 16 GB for the driver
                master = os.environ.get("SPARK_MASTER", f"local[{processes}]")
                SparkSession.builder.master(master).appName("filip download").getOrCreate()
            run = distributors.pyspark_distributor
        else:
            import ray

            if not ray.is_initialized():
                ray.init(num_cpus=None if "RAY_ADDRESS" in os.environ else processes)
            run = distributors.ray_distributor
    except ImportError as error:
        raise UserError(
            f"download.distributor is {distributor}, but it is not installed: pip install {distributor}"
        ) from error
    run(processes, downloader, reader, SHARDS_PER_JOB, SHARD_TRIES - 1)
    missing = {s for s in wanted if not is_complete(downloader.final_folder, s)}
    return dict.fromkeys(missing, f"failed on a {distributor} worker, whose log has the reason")
