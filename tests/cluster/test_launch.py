"""What becomes of a Slurm job: the study's own launch line, with a stub in place of the trainer.

Jobs that only have to be waited for are submitted together and run side by side.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.one_host_slurm import OneHostSlurm
from workflow.launch import Launch
from workflow.study import ROOT

STUB = ROOT / "tests" / "cluster" / "stub_trainer.py"
DONE = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@dataclass
class Submitted:
    """A job, and the folder of its log and of what the first rank wrote at each start of the stub."""

    slurm: OneHostSlurm
    job: str
    folder: Path

    def ends(self, timeout: float = 300) -> str:
        return self.slurm.wait_for(self.job, *DONE, timeout=timeout)

    @property
    def starts(self) -> list[dict]:
        file = self.folder / "starts.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text() if (self.folder / "log").exists() else "no log"

    def starts_are(self, count: int, timeout: float = 120) -> None:
        """Wait until the stub has been started that often."""
        self.slurm.wait_until(lambda: len(self.starts) == count, timeout, lambda: self.log)


def submit(
    slurm: OneHostSlurm, folder: Path, behaviour: str, nodes: int = 2, ranks_per_node: int = 2
) -> Submitted:
    """Submit the launch line of a study as Snakemake's job step runs it, with the stub and its behaviour."""
    launch = Launch("srun", nodes, ranks_per_node, None, None, 29500, 1, 1, {})
    command = launch.command(str(folder)).replace("-m filip.train ", f"{STUB} ")
    assert command.endswith("python -m filip.train")
    command = command.removesuffix("-m filip.train") + f"{STUB} {behaviour} {folder}"
    # the plugin's job step removes what Slurm says of the allocation, except for a few names
    stripped = (
        "for v in $(env | grep -o '^SLURM_[A-Z_]*'); do case $v in SLURM_JOB_ID) ;; *) unset $v;; esac; done"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    request = ["sbatch", "--parsable", "--requeue", f"--nodes={nodes}", f"--ntasks-per-node={ranks_per_node}"]
    request += ["--cpus-per-task=1", "--open-mode=append", f"--output={folder}/log"]
    return Submitted(slurm, slurm.ask(*request, f"--wrap={stripped}\n{command}", env=environment), folder)


def test_192_processes_on_24_nodes_wait_for_a_dead_node_and_then_find_each_other(
    slurm: OneHostSlurm, tmp_path: Path
) -> None:
    last = slurm.nodes - 1
    slurm.kill_node(last)
    slurm.set_nodes(f"node{last}", "DOWN")  # as the controller does by itself after SlurmdTimeout
    try:
        found = submit(slurm, tmp_path, "meet", nodes=slurm.nodes, ranks_per_node=8)
        slurm.wait_until(lambda: "DOWN" in slurm.ask("squeue", "-h", "-j", found.job, "-o", "%r"))
        assert slurm.state(found.job) == "PENDING" and not found.starts
    finally:
        slurm.start_node(last)
    assert found.ends() == "COMPLETED", found.log
    (start,) = found.starts
    assert start["met"] == list(range(192)) and start["local_world_size"] == 8


@pytest.fixture(scope="module")
def together(slurm: OneHostSlurm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Submitted]:
    """A job of each of these behaviours."""
    behaviours = ("wait", "mistake", "one_rank_dies")
    return {name: submit(slurm, tmp_path_factory.mktemp(name), name) for name in behaviours}


def test_a_cancelled_job_is_not_started_again(together: dict[str, Submitted]) -> None:
    found = together["wait"]
    found.starts_are(1)
    found.slurm.ask("scancel", found.job)
    assert found.ends() == "CANCELLED"
    assert len(found.starts) == 1


def test_a_user_s_mistake_ends_the_job_at_once(together: dict[str, Submitted]) -> None:
    found = together["mistake"]
    assert found.ends() == "FAILED"
    assert len(found.starts) == 1 and "not started again" in found.log


def test_a_rank_that_always_dies_gives_up_after_three_starts(together: dict[str, Submitted]) -> None:
    found = together["one_rank_dies"]
    assert found.ends() == "FAILED", found.log
    assert len(found.starts) == 3 and "crash 3 " in found.log
