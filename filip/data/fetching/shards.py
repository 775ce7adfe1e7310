"""Download one shard after the other: img2dataset's files, atomic, ordered and robust against killed workers.

Images are resized by img2dataset; its own loop over a shard can neither put a busy host off nor lose a worker.

- a reader that cuts shards out of the list one by one (img2dataset's own reads the whole list into memory),
- a writer with the same layout, but with samples in the order of the list and without time stamps: the same
  responses give the same bytes, whichever thread was faster,
- a shard appears under its name only when it is complete, its ``_stats.json`` last,
- a worker that is stuck ends itself, and an image that kills the process that decodes it is given up alone.

``workers`` runs them, and tries again.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from filip.data.fetching.access import Access
from filip.data.fetching.fetch import DEADLINE, fetch
from filip.data.fetching.forgotten import FORGOTTEN, Forgotten
from filip.data.fetching.hosts import PATIENCE, REFUSALS, PatientRows, Result, Row, of_one_host
from filip.data.fetching.in_progress import CRASHED, InProgress
from filip.data.fetching.ordered_writer import OrderedWriter
from filip.data.fetching.outcomes import Answer
from filip.data.fetching.revision import RETRIED
from filip.data.lists.parquet_rows import tables
from filip.data.remote_tars import is_there, send
from filip.files import publish, write_json
from filip.progress import say

SHARD_DIGITS = 5  # img2dataset's oom_shard_count
WORK = "_work"  # folder inside the shards' folder: plan, lists of retries, half-finished shards
# Errors of the whole disk: the next shard would fail like this one, after all its URLs were fetched.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
SECONDS_PER_IMAGE = 1.0  # seconds for an image besides the network: far more than decoding and writing take
SECONDS_PER_SHARD = 600.0
AGENT = "img2dataset"  # our name in X-Robots-Tag: whoever forbids it to img2dataset means us
LIST_SHA256 = "source_sha256"  # column in which a list says what the bytes of an image are
MOST_OUTCOMES = 200  # that the statistics of a shard tell apart
MOST_HOSTS = 5  # given up in a shard, that are named


def shard_name(shard: int) -> str:
    return f"{shard:0{SHARD_DIGITS}d}"


class ListReader:
    """Reader that cuts a URL list into shards; it yields what img2dataset's distributors take: (shard, Arrow file)."""

    def __init__(self, path: Path, rows_per_shard: int, first_shard: int, columns: list[str], work: Path) -> None:
        self.path, self.rows_per_shard, self.first_shard, self.columns = (path, rows_per_shard, first_shard, columns)
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


@dataclass
class ShardDownloader:
    """Downloader of whole shards; a shard is moved to its place when complete. It can be pickled to any worker."""

    final_folder: Path
    access: Access
    resizer: Any  # bytes → (encoded, width, height, original width and height, error or None)
    columns: list[str]
    threads: int
    timeout: float
    retries: int  # immediate ones
    rows_per_shard: int
    encode_format: str
    opt_outs: frozenset[str]  # directives that forbid the use of an image
    verify_sha256: bool = True  # compare with the list's hash, where it has one
    tars: str | None = None  # folder of a bucket that takes the tars
    retried: dict[int, set[int]] = field(default_factory=dict)  # shard: rows that a later pass has
    patient: bool = False  # wait for busy hosts; else a later pass does

    def download_shard(self, row: tuple[int, str]) -> None:
        """Download one shard. Raises when it could not be completed, and leaves nothing behind."""
        shard, name = row[0], shard_name(row[0])
        staging = self.final_folder / WORK / f"{name}.{os.uname().nodename}.{os.getpid()}"
        shutil.rmtree(staging, ignore_errors=True)  # left by a killed worker with the same shard
        staging.mkdir(parents=True)
        progress = InProgress(progress_file(self.final_folder, shard))
        complete = False
        try:
            stats = self._fill(shard, Path(row[1]), staging, progress)
            write_json(staging / f"{name}_stats.json", stats)
            rows = pq.read_metadata(staging / f"{name}.parquet").num_rows
            if rows != stats["count"]:
                raise OSError(f"{stats['count'] - rows} of {stats['count']} samples were not written")
            if self.tars is not None:
                send(staging / f"{name}.tar", self.tars, staging / f"{name}.parquet", staging / f"{name}_stats.json")
            for suffix in (".tar", ".index", ".answers", ".parquet", "_stats.json"):
                publish(staging / f"{name}{suffix}", self.final_folder / f"{name}{suffix}")
            Path(row[1]).unlink(missing_ok=True)
            complete = True
        finally:
            progress.close(complete)
            shutil.rmtree(staging, ignore_errors=True)

    def _fill(self, shard: int, listed: Path, staging: Path, progress: InProgress) -> dict[str, Any]:
        """Write tar, index and Parquet of a shard into ``staging``; return its statistics, as img2dataset has them."""
        started = time.time()
        with pa.OSFile(str(listed), "rb") as source:
            table = pa.ipc.open_file(source).read_all().select(self.columns)
        rows = table.to_pylist()
        digits = math.ceil(math.log10(self.rows_per_shard))
        writer = OrderedWriter(shard, str(staging), True, SHARD_DIGITS, _schema(table), self.encode_format)
        counts: Counter[str] = Counter()
        outcomes: Counter[str] = Counter()
        answers: list[dict[str, Any]] = []
        with closing(self._fetched(shard, [str(row["url"] or "") for row in rows])) as fetched:
            for number, data, problem, answer in fetched:
                outcome = Stored(status="failed_to_download", error_message=problem)
                if data is not None:
                    outcome = self._stored(number, rows[number], data, progress)
                key = f"{10**digits * shard + number:0{digits + SHARD_DIGITS}d}"
                about = {**rows[number], "key": key, **{n: getattr(outcome, n) for n in OUTCOME.names}}
                answers.append({"key": key, **asdict(answer)})
                writer.write(outcome.image, key, rows[number].get("caption"), about)
                counts[outcome.status] += 1
                if len(outcomes) < MOST_OUTCOMES or outcome.name in outcomes:
                    outcomes[outcome.name] += 1
        writer.close()
        _write_answers(staging / f"{shard_name(shard)}.answers", answers)
        return {
            "count": len(rows),
            "successes": counts["success"],
            "failed_to_download": counts["failed_to_download"],
            "failed_to_resize": counts["failed_to_resize"],
            "duration": time.time() - started,
            "start_time": started,
            "end_time": time.time(),
            "status_dict": dict(outcomes),
        }

    def _fetched(self, shard: int, urls: list[str]) -> Generator[Result, None, None]:
        """Yield the result of each row, as they come."""
        skipped, forgotten = self.retried.get(shard, set()), Forgotten.load(self.final_folder)
        given_up = threading.Event()  # the rest is not asked for
        waiting = threading.Semaphore(2 * self.threads)  # no more images than this wait to be resized

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
            yield number, None, f"{RETRIED}in a later pass", Answer()
        with ThreadPool(self.threads) as pool:
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
        answer = Answer()
        if given_up.is_set():
            return number, None, "other: the shard was given up", answer
        if forgotten.refuses(url):
            return number, None, f"{FORGOTTEN}: on request", answer
        directives = set(self.opt_outs)
        _, body, problem = fetch(row, self.timeout, self.retries, AGENT, directives, access=self.access, answer=answer)
        data = None if body is None else body.getvalue()
        if data is not None and forgotten.refuses("", data):
            return number, None, f"{FORGOTTEN}: on request", answer
        return number, data, problem, answer

    def _stored(self, number: int, row: dict[str, Any], data: bytes, progress: InProgress) -> Stored:
        """Check, resize and encode an image that was fetched."""
        sha256 = hashlib.sha256(data).hexdigest()
        expected = row.get(LIST_SHA256) if self.verify_sha256 else None
        if expected and str(expected).lower() != sha256:
            problem = f"hash_mismatch: the list says {expected}"
            return Stored(status="failed_to_download", error_message=problem)
        if not progress.survives(number, self.resizer, io.BytesIO(data)):
            return Stored(status="failed_to_resize", error_message=CRASHED)
        image, width, height, original_width, original_height, problem = self.resizer(io.BytesIO(data))
        if problem is not None:
            return Stored(status="failed_to_resize", error_message=problem)
        return Stored(image, "success", None, width, height, original_width, original_height, sha256)


@dataclass
class Stored:
    """The outcome of a row: columns of the shard's Parquet file, and the encoded image."""

    image: bytes | None = None
    status: str = ""
    error_message: str | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    sha256: str | None = None  # hash of the file as it was fetched

    @property
    def name(self) -> str:
        return self.error_message or self.status


OUTCOME = pa.schema(
    [
        ("status", pa.string()),
        ("error_message", pa.string()),
        *((name, pa.int32()) for name in ("width", "height", "original_width", "original_height")),
        ("sha256", pa.string()),
    ]
)


ANSWERS = pa.schema(
    [
        ("key", pa.string()),
        ("time", pa.timestamp("ms", tz="UTC")),
        ("status", pa.int16()),
        ("x_robots_tag", pa.string()),
        ("tdm_reservation", pa.string()),
    ]
)


def _write_answers(path: Path, answers: list[dict[str, Any]]) -> None:
    """Write what the servers said, in a separate file: the shard's other files do not depend on the time."""
    rows = sorted(answers, key=lambda row: str(row["key"]))
    for row in rows:
        row["time"] = row["time"] and round(1000 * row["time"])
    pq.write_table(pa.Table.from_pylist(rows, ANSWERS), path, compression="zstd")


def _schema(listed: pa.Table) -> pa.Schema:
    """Return the columns of a shard's Parquet file: those of the list, and the outcome."""
    return pa.schema([*listed.schema, ("key", pa.string()), *OUTCOME])


def progress_file(folder: Path, shard: int) -> Path:
    return folder / WORK / f"{shard_name(shard)}.progress"


def longest_time(downloader: ShardDownloader) -> float:
    """Return an upper bound on the seconds that a shard takes; a worker that exceeds it is considered stuck."""
    rows = downloader.rows_per_shard
    rounds = -(-rows // downloader.threads) * (downloader.retries + 1 + REFUSALS)
    return SECONDS_PER_SHARD + SECONDS_PER_IMAGE * rows + rounds * DEADLINE * downloader.timeout + PATIENCE


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
    described = (folder / f"{shard_name(shard)}{suffix}" for suffix in (".parquet", "_stats.json"))
    return is_there(folder / f"{shard_name(shard)}.tar") and all(path.exists() for path in described)
