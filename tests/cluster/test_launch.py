"""What becomes of a Slurm job: the study's own launch line, with a stub in place of the trainer."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster.one_host_slurm import OneHostSlurm
from workflow.launch import Launch
from workflow.study import ROOT

STUB = ROOT / "tests" / "cluster" / "stub_trainer.py"
DONE = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture
def submit(slurm: OneHostSlurm, tmp_path: Path):
    """Submit the launch line of a study as Snakemake's job step runs it, with the stub and its behaviour."""

    def submitted(behaviour: str, *options: str, nodes: int = 2, ranks_per_node: int = 2) -> str:
        launch = Launch("srun", nodes, ranks_per_node, None, None, 29500, 1, 1, {})
        command = launch.command(str(tmp_path)).replace("-m filip.train ", f"{STUB} ")
        assert command.endswith("python -m filip.train")
        command = command.removesuffix("-m filip.train") + f"{STUB} {behaviour} {tmp_path}"
        # the plugin's job step removes what Slurm says of the allocation, except for a few names
        stripped = "for v in $(env | grep -o '^SLURM_[A-Z_]*'); do case $v in SLURM_JOB_ID) ;; *) unset $v;; esac; done"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1"}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        request = [
            "sbatch",
            "--parsable",
            "--requeue",
            f"--nodes={nodes}",
            f"--ntasks-per-node={ranks_per_node}",
        ]
        request += ["--cpus-per-task=1", "--open-mode=append", f"--output={tmp_path}/log", *options]
        return slurm.ask(*request, f"--wrap={stripped}\n{command}", env=environment)

    return submitted


def starts(folder: Path) -> list[dict]:
    """What the first rank wrote at each start of the stub."""
    file = folder / "starts.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def log(folder: Path) -> str:
    return (folder / "log").read_text() if (folder / "log").exists() else "no log"


def test_192_processes_on_24_nodes_find_each_other(submit, slurm: OneHostSlurm, tmp_path: Path) -> None:
    job = submit("meet", nodes=24, ranks_per_node=8)
    assert slurm.wait_for(job, *DONE, timeout=240) == "COMPLETED", log(tmp_path)
    (start,) = starts(tmp_path)
    assert start["met"] == list(range(192)) and start["local_world_size"] == 8


def test_a_time_limit_sends_the_job_back_into_the_queue_and_it_finishes(
    submit, slurm: OneHostSlurm, tmp_path: Path
) -> None:
    job = submit("wait_once", "--time=1", "--signal=USR1@50")
    assert slurm.wait_for(job, *DONE, timeout=200) == "COMPLETED", log(tmp_path)
    assert len(starts(tmp_path)) == 2 and "saved its state because of a signal" in log(tmp_path)


def test_a_user_s_mistake_ends_the_job_at_once(submit, slurm: OneHostSlurm, tmp_path: Path) -> None:
    job = submit("mistake")
    assert slurm.wait_for(job, *DONE) == "FAILED"
    assert len(starts(tmp_path)) == 1 and "not started again" in log(tmp_path)


def test_a_rank_that_always_dies_gives_up_after_three_starts(
    submit, slurm: OneHostSlurm, tmp_path: Path
) -> None:
    job = submit("one_rank_dies")
    assert slurm.wait_for(job, *DONE, timeout=150) == "FAILED", log(tmp_path)
    assert len(starts(tmp_path)) == 3 and "crash 3 " in log(tmp_path)


def test_a_cancelled_job_is_not_started_again(submit, slurm: OneHostSlurm, tmp_path: Path) -> None:
    job = submit("wait_once")
    slurm.wait_until(lambda: len(starts(tmp_path)) == 1, about=lambda: log(tmp_path))
    slurm.ask("scancel", job)
    assert slurm.wait_for(job, *DONE) == "CANCELLED"
    assert len(starts(tmp_path)) == 1


def test_a_job_survives_its_controller_and_the_death_of_a_node(
    submit, slurm: OneHostSlurm, tmp_path: Path
) -> None:
    job = submit("wait_once")
    slurm.wait_until(lambda: len(starts(tmp_path)) == 1, about=lambda: log(tmp_path))
    # The controller saves what has changed every few seconds, and a new one knows of nothing that came after.
    before, saved = time.time(), slurm.folder / "state/job_state"
    slurm.ask("scontrol", "update", f"JobId={job}", "Comment=runs")
    slurm.wait_until(lambda: saved.stat().st_mtime > before)
    slurm.stop_controller()
    slurm.start_controller()
    assert slurm.wait_for(job, "RUNNING") == "RUNNING"
    node = int(slurm.ask("squeue", "-h", "-j", job, "-o", "%B").removeprefix("node"))
    other = node + 1  # the batch script lives on the first node; two nodes in a row were free
    die(slurm, other)
    try:
        slurm.wait_until(lambda: len(starts(tmp_path)) == 2, 120, lambda: log(tmp_path))
        assert slurm.wait_for(job, *DONE) == "COMPLETED", log(tmp_path)
    finally:
        slurm.start_node(other)
        slurm.wait_until(lambda: slurm.idle() == slurm.nodes)


def die(slurm: OneHostSlurm, node: int) -> None:
    """As a power cut: the daemon, its step daemons and all that they started are killed at once."""
    daemon = psutil.Process(int((slurm.folder / f"run/slurmd-node{node}.pid").read_text()))
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("SLURMD_NODENAME") == f"node{node}":
            process.send_signal(signal.SIGKILL)
    daemon.send_signal(signal.SIGKILL)
