"""The workers of a Spark or Ray cluster, each shard a job of its own.

So a machine that is lost costs the shards that it was at, the lists of those that wait are written as they are needed,
and progress is known shard by shard. img2dataset's own distributors wait for a thousand shards at a time (Spark), or
write all lists first and never try again (Ray). The folder of the shards has to be one that all machines see.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from filip.data.fetching.shards import Outcome, ShardDownloader, longest_time, run_shard
from filip.data.fetching.workers import SHARDS_PER_WORKER, Row, Submit, Workers
from filip.errors import UserError

MOST_IN_FLIGHT = 2000  # the driver has a thread for each (Spark)
JOB_GROUP = "filip download"
SHOWN = 300  # characters of an engine's message


def cluster_workers(distributor: str, downloader: ShardDownloader, processes: int) -> Workers:
    """``pyspark``: the active session, else one on SPARK_MASTER, else local mode with ``processes`` threads.
    ``ray``: the cluster at RAY_ADDRESS, else this machine with ``processes`` CPUs.

    Raises UserError when the engine is not installed.
    """
    try:
        if distributor == "pyspark":
            return SparkWorkers(downloader, processes)
        return RayWorkers(downloader, processes)
    except ImportError as error:
        raise UserError(
            f"download.distributor is {distributor}, but it is not installed: pip install {distributor}"
        ) from error


class SparkWorkers:
    shards_per_pool = sys.maxsize
    one_death_ends_the_pool = False

    def __init__(self, downloader: ShardDownloader, processes: int) -> None:
        from pyspark.sql import SparkSession

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
        # grows while machines join
        return min(MOST_IN_FLIGHT, 2 * self.context.defaultParallelism)

    def _job(self, row: Row) -> Outcome:
        """Spark itself gives the shards of a lost machine to another one."""
        self.context.setJobGroup(JOB_GROUP, f"shard {row[0]}", interruptOnCancel=True)
        try:
            (outcome,) = self.context.parallelize([row], 1).map(self.run).collect()
        except Exception as error:
            raise RuntimeError(_spark_message(error)) from None
        return outcome  # type: ignore[no-any-return]


def _run_in_spark(downloader: ShardDownloader, limit: float, row: Row) -> Outcome:
    return run_shard(downloader, row, limit)


def _spark_message(error: Exception) -> str:
    """The sentence in Spark's many lines of Java."""
    text = str(error)
    for line in text.splitlines():
        if "SparkException: " in line:
            return line.split("SparkException: ", 1)[1][:SHOWN]
    return text.strip().split("\n")[0][:SHOWN]


class RayWorkers:
    shards_per_pool = sys.maxsize
    one_death_ends_the_pool = False

    def __init__(self, downloader: ShardDownloader, processes: int) -> None:
        import ray

        self.ray: Any = ray
        if not self.ray.is_initialized():
            self.ray.init(**({} if "RAY_ADDRESS" in os.environ else {"num_cpus": processes}))
        # shards are tried again by whoever asks for workers, as on one machine
        self.run = self.ray.remote(max_retries=0, max_calls=SHARDS_PER_WORKER)(run_shard)
        self.downloader = self.ray.put(downloader)
        self.limit = longest_time(downloader)

    @contextmanager
    def pool(self, alone: bool) -> Iterator[Submit]:
        running: dict[Future[Outcome], Any] = {}

        def submit(row: Row) -> Future[Outcome]:
            task = self.run.remote(self.downloader, row, self.limit)
            future: Future[Outcome] = task.future()
            running[future] = task
            future.add_done_callback(lambda done: running.pop(done, None))
            return future

        try:
            yield submit
        except BaseException:
            for task in list(running.values()):
                self.ray.cancel(task, force=True)
            raise

    def in_flight(self, alone: bool) -> int:
        return max(2, int(2 * self.ray.cluster_resources().get("CPU", 0)))
