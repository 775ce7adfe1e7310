"""Two hosts with a real network interface between them: launchers that cross it, and a cable that is pulled."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from filip.train.launcher_env import lost_contact
from tests.cluster.two_hosts import ADDRESSES, INTERFACE, TwoHosts, why_not
from tests.support.debian import why_not_installed
from tests.support.launched_ranks import environment
from tests.support.training import records, train_arguments
from workflow.launch import Launch
from workflow.study import ROOT

pytestmark = pytest.mark.timeout(900)
BIN = Path(sys.executable).parent
PORT = "29533"  # a port of the first host, which has all ports to itself


@pytest.fixture
def hosts() -> Iterator[TwoHosts]:
    if reason := why_not():
        pytest.skip(reason)
    with TwoHosts() as both:
        yield both


def variables() -> dict[str, str]:
    return environment(PATH=f"{BIN}:{os.environ['PATH']}")


def torchrun(host: int) -> list[str]:
    place = ["--master_addr", ADDRESSES[0], "--master_port", PORT]
    return [str(BIN / "torchrun"), "--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(host), *place]


def ended(started: list[subprocess.Popen[bytes]], timeout: float) -> list[int]:
    end = time.monotonic() + timeout
    try:
        return [process.wait(max(1.0, end - time.monotonic())) for process in started]
    finally:
        for process in started:
            process.kill()


def steps(run: Path) -> int:
    return max((line["step"] for line in records(run)), default=0) if (run / "log.jsonl").exists() else 0


def wait_for_step(run: Path, step: int, started: list[subprocess.Popen[bytes]], log: Path) -> None:
    end = time.monotonic() + 400
    while steps(run) < step:
        assert time.monotonic() < end and all(p.poll() is None for p in started), log.read_text()[-3000:]
        time.sleep(0.2)


def test_deepspeed_with_a_hostfile_trains_across_the_cable(hosts: TwoHosts, squares: Path, tmp_path: Path) -> None:
    """The launch line of a study, started on the first host: DeepSpeed reaches both by pdsh."""
    if reason := why_not_installed(("pdsh",), ("pdsh",)):
        pytest.skip(reason)
    hostfile, more = tmp_path / "hosts", tmp_path / "variables"
    hostfile.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    # the content of .deepspeed_env: without it DeepSpeed passes on variables of Python and the accelerator alone
    here = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", **INTERFACE}
    more.write_text("".join(f"{name}={value}\n" for name, value in here.items()))
    log, run = tmp_path / "log", tmp_path / "run"
    launch = Launch("deepspeed", 2, 1, None, str(hostfile), int(PORT), 1, 1, {}).command()
    arguments = train_arguments(squares, run, "max_steps=6", "world_size=2")[2:]
    before = hosts.received(1)
    path = f"{hosts.shell(tmp_path / 'bin')}:{BIN}:{os.environ['PATH']}"
    given = environment(PATH=path, DS_ENV_FILE=str(more), PYTHONPATH=str(ROOT))
    started = [hosts.start(0, [*shlex.split(launch), *arguments], given, log)]
    assert ended(started, 500) == [0], log.read_text()[-3000:]
    result = json.loads((run / "model.json").read_text())
    assert (result["world_size"], result["steps"]) == (2, 6)
    # the gradients of every step, in float32
    assert hosts.received(1) - before > 6 * 4 * result["parameters"]


def test_a_pulled_cable_is_survived_or_ends_all_ranks(hosts: TwoHosts, squares: Path, tmp_path: Path) -> None:
    logs, run = [tmp_path / "log0", tmp_path / "log1"], tmp_path / "run"
    arguments = train_arguments(squares, run, "max_steps=100000", "timeout_minutes=0.4", "world_size=2")
    started = [hosts.start(host, [*torchrun(host), *arguments], variables(), logs[host]) for host in (0, 1)]
    wait_for_step(run, 3, started, logs[0])
    before = hosts.timeouts()
    hosts.cut()
    while hosts.timeouts() == before and all(process.poll() is None for process in started):
        time.sleep(0.1)  # until TCP has missed an answer
    reached = steps(run)
    hosts.mend()
    wait_for_step(run, reached + 5, started, logs[0])  # TCP sends again what was lost
    hosts.cut()
    # 24 s for the collective; the rest for a busy machine and for the launchers to notice
    assert 0 not in ended(started, 240)
    for host, log in enumerate(logs):
        text = log.read_text()
        assert f"error: rank {host} on " in text and "has lost contact with the other ranks" in text, text[-3000:]
        assert "Started again, the run continues from its last checkpoint" in text


def test_other_errors_are_not_taken_for_lost_contact() -> None:
    assert lost_contact(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    # ss --kill
    assert lost_contact(RuntimeError("Read error [127.0.0.1]:1: Software caused connection abort"))
    assert lost_contact(ValueError("Connection reset by peer")) is None
    result = lost_contact(RuntimeError("[tcp.cc:1] Timed out waiting 24000ms for recv operation\nmore"))
    assert result is not None and result.endswith("[tcp.cc:1] Timed out waiting 24000ms for recv operation")
