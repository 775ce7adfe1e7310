"""Make img2dataset's shards atomic, ordered and robust against killed workers.

img2dataset's ``Downloader`` does the work of a shard, on whatever its distributors run on. Around it:

- a reader that cuts shards out of the list one by one (img2dataset's own reads the whole list into memory),
- a writer with the same layout, but with samples in the order of the list and without time stamps: the same
  responses give the same bytes, whichever thread was faster,
- a shard appears under its name only when it is complete, its ``_stats.json`` last,
- a worker that is stuck ends itself, and an image that kills the process that decodes it is given up alone.

``workers`` and ``spark`` run them, and try again.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import img2dataset.downloader
import pyarrow as pa
import pyarrow.parquet as pq

from filip.data.fetching.access import Access
from filip.data.fetching.fetch import DEADLINE, LONGEST_WAIT, fetch
from filip.data.fetching.forgotten import FORGOTTEN, Forgotten
from filip.data.fetching.in_progress import CRASHED, InProgress
from filip.data.fetching.ordered_writer import OrderedWriter
from filip.data.fetching.revision import RETRIED
from filip.data.lists.parquet_rows import tables
from filip.files import publish
from filip.progress import say

SHARD_DIGITS = 5  # img2dataset's oom_shard_count
WORK = "_work"  # folder inside the shards' folder: plan, lists of retries, half-finished shards
# Errors of the whole disk: the next shard would fail like this one, after all its URLs were fetched.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
SECONDS_PER_IMAGE = 1.0  # in addition to the network: far more than decoding and writing take
SECONDS_PER_SHARD = 600.0


def shard_name(shard: int) -> str:
    return f"{shard:0{SHARD_DIGITS}d}"


class ListReader:
    """Reader that cuts a URL list into shards; it yields what img2dataset's distributors take: (shard, Arrow file)."""

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
        """Yield the wanted shards in order. The Downloader removes each file when its shard is done."""
        self.work.mkdir(parents=True, exist_ok=True)
        for shard, table in enumerate(tables(self.path, self.rows_per_shard, self.columns), self.first_shard):
            if shard in self.wanted:
                path = self.work / f"{shard_name(shard)}.feather"
                with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                    writer.write_table(table)
                yield shard, str(path)


class ShardDownloader(img2dataset.downloader.Downloader):
    """img2dataset's Downloader with the bounded fetch; a shard is moved to its place when complete."""

    def __init__(self, final_folder: Path, access: Access, **options: Any) -> None:
        super().__init__(output_folder="", **options)
        self.final_folder, self.access = final_folder, access
        self.forgotten = Forgotten.load(final_folder)
        self.decoder = options["resizer"]
        self.retried: dict[
            int, set[int]
        ] = {}  # shard: rows that a later pass has; they are not fetched again

    def download_shard(self, row: tuple[int, str]) -> None:
        """Download one shard. Raises when it could not be completed, and leaves nothing behind."""
        shard = row[0]
        name = shard_name(shard)
        staging = self.final_folder / WORK / f"{name}.{os.uname().nodename}.{os.getpid()}"
        shutil.rmtree(staging, ignore_errors=True)  # left by a killed worker with the same shard
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
                publish(staging / f"{name}{suffix}", self.final_folder / f"{name}{suffix}")
            complete = True
        finally:
            progress.close(complete)
            shutil.rmtree(staging, ignore_errors=True)

    def _writer(self, *arguments: Any) -> OrderedWriter:
        self.writer = OrderedWriter(*arguments)
        return self.writer

    def _fetch(self, row: tuple[int, str], **options: Any) -> tuple[int, io.BytesIO | None, str | None]:
        if self.writer.failure:
            return row[0], None, "other: the shard was given up"  # a fetched image could not be stored
        if row[0] in self.skipped:
            return row[0], None, f"{RETRIED}in a later pass"
        if self.forgotten.refuses(row[1]):
            return row[0], None, f"{FORGOTTEN}: on request"
        key, data, problem = fetch(row, access=self.access, **options)
        if data is not None and self.forgotten.refuses("", data.getvalue()):
            data, problem = None, f"{FORGOTTEN}: on request"
        return key, None if data is None else Body(key, data.getvalue()), problem


class Body(io.BytesIO):
    """Bytes of an image that know its number in the shard, as img2dataset passes nothing else to the resizer."""

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
    """Return an upper bound on the seconds that a shard takes; a worker that exceeds it is considered stuck."""
    rows = downloader.number_sample_per_shard
    rounds = -(-rows // downloader.thread_count) * (downloader.retries + 1)
    return (
        SECONDS_PER_SHARD + SECONDS_PER_IMAGE * rows + rounds * (DEADLINE * downloader.timeout + LONGEST_WAIT)
    )


@dataclass(frozen=True)
class Outcome:
    """Outcome of a shard in a worker."""

    shard: int
    failure: str | None = None  # why it is not complete
    # errno of a disk that is full or read-only: the next shard would fail like this one
    disk: int | None = None


def run_shard(downloader: ShardDownloader, row: tuple[int, str], limit: float) -> Outcome:
    """Download one shard, in a worker that ends itself after ``limit`` seconds."""
    # A thread in a system call that never returns (a name server, a network disk) cannot be ended, a process can.
    stuck = threading.Timer(limit, _give_up, (row[0],))
    stuck.daemon = True
    stuck.start()
    try:
        downloader.download_shard(row)
        return Outcome(row[0])
    except Exception as error:
        full = error.errno if isinstance(error, OSError) and error.errno in DISK_FULL else None
        return Outcome(row[0], f"{type(error).__name__}: {error}", full)
    finally:
        stuck.cancel()


def _give_up(shard: int) -> None:
    say(f"download: the worker of shard {shard_name(shard)} is stuck and ends")
    os._exit(1)


def is_complete(folder: Path, shard: int) -> bool:
    return all(
        (folder / f"{shard_name(shard)}{suffix}").exists() for suffix in (".tar", ".parquet", "_stats.json")
    )
