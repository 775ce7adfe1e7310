"""Download with the workers of a Spark cluster, one job per shard.

So a lost machine costs only the shards that it was working on, lists of waiting shards are written when needed,
and progress is known shard by shard. img2dataset's own distributor waits for a thousand shards at a time. The folder of
the shards has to be one that all machines see.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from filip.data.fetching.shards import Outcome, ShardDownloader, longest_time, run_shard
from filip.data.fetching.workers import Row, Submit
from filip.errors import UserError

MOST_IN_FLIGHT = 2000  # the driver has a thread for each (Spark)
JOB_GROUP = "filip download"
SHOWN = 300  # characters of an engine's message


class SparkWorkers:
    """Workers of the active session, else of one on SPARK_MASTER, else of local mode with ``processes`` threads.

    Raises UserError when pyspark is not installed.
    """

    shards_per_pool = sys.maxsize
    one_death_ends_the_pool = False

    def __init__(self, downloader: ShardDownloader, processes: int) -> None:
        try:
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise UserError(
                "download.distributor is pyspark, but it is not installed: pip install pyspark"
            ) from error
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        session = SparkSession.getActiveSession()
        if session is None:
            master = os.environ.get("SPARK_MASTER", f"local[{processes}]")
            builder = SparkSession.builder.master(master).appName(JOB_GROUP)
            session = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
        self.context = session.sparkContext
        self.run = partial(_run_in_spark, downloader, longest_time(downloader))

    @contextmanager
    def pool(self, alone: bool) -> Iterator[Submit]:
        with ThreadPoolExecutor(MOST_IN_FLIGHT) as threads:
            try:
                yield lambda row: threads.submit(self._job, row)
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                self.context.cancelJobGroup(JOB_GROUP)
                raise

    def in_flight(self, alone: bool) -> int:
        # grows as machines join
        return min(MOST_IN_FLIGHT, 2 * self.context.defaultParallelism)

    def _job(self, row: Row) -> Outcome:
        """Run a shard's job; Spark itself gives the shards of a lost machine to another one."""
        self.context.setJobGroup(JOB_GROUP, f"shard {row[0]}", interruptOnCancel=True)
        try:
            (outcome,) = self.context.parallelize([row], 1).map(self.run).collect()
        except Exception as error:
            raise RuntimeError(_spark_message(error)) from None
        return outcome  # type: ignore[no-any-return]


def _run_in_spark(downloader: ShardDownloader, limit: float, row: Row) -> Outcome:
    return run_shard(downloader, row, limit)


def _spark_message(error: Exception) -> str:
    """Return the sentence in Spark's many lines of Java."""
    text = str(error)
    for line in text.splitlines():
        if "SparkException: " in line:
            return line.split("SparkException: ", 1)[1][:SHOWN]
    return text.strip().split("\n")[0][:SHOWN]
