"""A Spark cluster of two workers on this machine, as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
SECONDS = 300  # that a daemon may take to start on a busy machine


@dataclass
class Cluster:
    """A cluster. address: what a driver is given. worker: the process of one of its two machines, with all below it."""

    address: str
    worker: int
    environment: dict[str, str] = field(default_factory=dict)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all its descendants; [] if it is over."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def kill(pid: int) -> None:
    """Kill a process and all its descendants with kill -9."""
    for one in family(pid):
        with suppress(psutil.NoSuchProcess):
            one.kill()


def wait_until(happened: Callable[[], bool], what: str, logs: Sequence[Path] = ()) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        if time.monotonic() > deadline:
            raise AssertionError("\n".join([f"waited {SECONDS} s for {what}", *map(Path.read_text, logs)]))
        time.sleep(0.05)


def wait_for_start(
    daemons: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path], started: Callable[[], bool], what: str
) -> None:
    """Wait for daemons; fail at once, with what they wrote, when one ends instead."""

    def over() -> bool:
        return any(daemon.poll() is not None for daemon in daemons)

    wait_until(lambda: over() or started(), what, logs)
    assert not over(), "\n".join(log.read_text() for log in logs)


@contextmanager
def spark_cluster(folder: Path) -> Iterator[Cluster]:
    """Run Spark's standalone master and two workers of one core each; needs Java."""
    import pyspark

    home = Path(pyspark.__file__).parent
    port = free_port()
    address = f"spark://127.0.0.1:{port}"
    master = ["Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0"]
    worker = [
        "Worker",
        "--host",
        "127.0.0.1",
        "--cores",
        "1",
        "--memory",
        "600m",
        "--webui-port",
        "0",
        address,
    ]
    # the smallest that works: these are six Java machines
    java = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    (folder / "spark-defaults.conf").write_text(
        "spark.ui.enabled false\nspark.executor.memory 512m\n"
        f"spark.driver.extraJavaOptions {java}\nspark.executor.extraJavaOptions {java}\n"
    )
    settings = environment(
        SPARK_CONF_DIR=str(folder),
        SPARK_HOME=str(home),
        SPARK_LOCAL_IP="127.0.0.1",
        SPARK_DAEMON_MEMORY="128m",
        SPARK_DAEMON_JAVA_OPTS=f"{java} -Dspark.master.rest.enabled=false",
        SPARK_WORKER_DIR=str(folder / "spark"),
        PYSPARK_PYTHON=sys.executable,
    )
    daemons: list[subprocess.Popen[bytes]] = []
    logs = [folder / f"spark_{number}.log" for number in range(3)]
    try:
        for log, arguments in zip(logs, (master, worker, worker), strict=True):
            name, *rest = arguments
            command = [
                str(home / "bin" / "spark-class"),
                f"org.apache.spark.deploy.{name.lower()}.{name}",
                *rest,
            ]
            with open(log, "wb") as out:
                daemons.append(
                    subprocess.Popen(command, stdout=out, stderr=out, env=settings, start_new_session=True)
                )
        wait_for_start(
            daemons, logs, lambda: logs[0].read_text().count("Registering worker") == 2, "Spark's workers"
        )
        yield Cluster(address, daemons[2].pid, settings)
    finally:
        for daemon in daemons:
            kill(daemon.pid)
            daemon.wait()
