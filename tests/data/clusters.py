"""Spark and Ray clusters of two workers on this machine, as processes of their own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
SECONDS = 300  # that a daemon may take to start on a busy machine


@dataclass
class Cluster:
    """address: what a driver is given. kill_a_worker: kill -9 of one of its machines, with all that runs there."""

    address: str
    kill_a_worker: Callable[[], None]
    environment: dict[str, str] = field(default_factory=dict)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def kill(pid: int) -> None:
    """kill -9 of a process and all its descendants."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()


def wait_until(happened: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


@contextmanager
def spark_cluster(folder: Path) -> Iterator[Cluster]:
    """Spark's standalone master and two workers of one core each; needs Java."""
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
        wait_until(lambda: logs[0].read_text().count("Registering worker") == 2, "Spark's workers")
        yield Cluster(address, lambda: kill(daemons[2].pid), settings)
    finally:
        for daemon in daemons:
            kill(daemon.pid)
            daemon.wait()


@contextmanager
def ray_cluster(folder: Path) -> Iterator[Cluster]:
    """Two Ray nodes of one CPU each; the second can be killed. Sockets of Unix have short paths: ``folder`` too."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    settings = environment(
        RAY_health_check_initial_delay_ms="0",
        RAY_health_check_period_ms="500",
        RAY_health_check_timeout_ms="5000",
        RAY_health_check_failure_threshold="2",
        RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
        RAY_ADDRESS=address,
    )
    ray = str(Path(sys.executable).with_name("ray"))
    common = ["--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats", "--block"]
    head = [
        f"--port={port}",
        "--node-ip-address=127.0.0.1",
        "--include-dashboard=false",
        f"--temp-dir={folder}",
    ]
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for number, arguments in enumerate((head, [f"--address={address}"])):
            log = folder / f"ray_{number}.log"
            with open(log, "wb") as out:
                command = [ray, "start", *(["--head"] if number == 0 else []), *arguments, *common]
                nodes.append(
                    subprocess.Popen(command, stdout=out, stderr=out, env=settings, start_new_session=True)
                )
            wait_until(lambda: "Ray runtime started" in log.read_text(), "a Ray node")  # noqa: B023
        yield Cluster(address, lambda: kill(nodes[1].pid), settings)
    finally:
        for node in reversed(nodes):
            kill(node.pid)
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
        shutil.rmtree(folder, ignore_errors=True)
