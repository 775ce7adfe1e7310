"""Studies on a real Slurm: what becomes of a job, and of a study of trainings, whatever happens to their nodes.

All in one file, so that one process runs it: this Slurm has the machine's names.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname

import psutil
import pytest

from filip.train.job import attempts
from tests.cluster.desk import ENDED, RUNS, STEPS, Desk, kill
from tests.cluster.one_host_slurm import DAEMONS, DEFAULT_PLACE, FILES, OneHostSlurm, why_not
from tests.support.processes import Process
from tests.support.training import same_weights
from workflow.launch import Launch
from workflow.study import ROOT

pytestmark = pytest.mark.timeout(1500)
STUB = ROOT / "tests" / "cluster" / "stub_trainer.py"


def test_no_daemon_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    """Before the session's Slurm, whose ports it uses."""
    if reason := why_not():
        pytest.skip(reason)
    log = tmp_path / "log"
    cluster = Process(["-m", "tests.cluster.one_host_slurm", str(tmp_path), "2"], log=log, cwd=ROOT)
    OneHostSlurm.wait_until(lambda: log.exists() and "idle" in log.read_text(), 60)
    assert daemons()
    kill(cluster)
    OneHostSlurm.wait_until(lambda: not daemons(), 60)
    assert not any((DEFAULT_PLACE / name).is_symlink() for name in FILES)


def daemons() -> list[str]:
    return [name for process in psutil.process_iter() if (name := process.name()) in DAEMONS]


# ---- jobs: the study's own launch line, with a stub in place of the trainer --------------------------
# Those that only have to be waited for are submitted together and run side by side.


@dataclass
class Submitted:
    """A job, and the folder of its log and of what the first rank wrote at each start of the stub."""

    slurm: OneHostSlurm
    job: str
    folder: Path

    def ends(self, timeout: float = 300) -> str:
        return self.slurm.wait_for(self.job, *ENDED, timeout=timeout)

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


def submit(slurm: OneHostSlurm, folder: Path, behaviour: str, nodes: int = 2, ranks_per_node: int = 2) -> Submitted:
    """Submit the launch line of a study as Snakemake's job step runs it, with the stub and its behaviour."""
    launch = Launch("srun", ranks_per_node, cpus_per_rank=1, nodes=nodes)
    command = launch.command()
    assert command.endswith("python -m filip.train")
    command = command.removesuffix("-m filip.train") + f"{STUB} {behaviour} {folder}"
    command = f"python -m filip.train.job run_dir={folder} requeue={launch.requeues} -- {command}"
    # the plugin's job step removes what Slurm says of the allocation, except for a few names
    stripped = "for v in $(env | grep -o '^SLURM_[A-Z_]*'); do case $v in SLURM_JOB_ID) ;; *) unset $v;; esac; done"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    request = ["sbatch", "--parsable", "--requeue", f"--nodes={nodes}", f"--ntasks-per-node={ranks_per_node}"]
    request += ["--cpus-per-task=1", "--open-mode=append", f"--output={folder}/log"]
    return Submitted(slurm, slurm.ask(*request, f"--wrap={stripped}\n{command}", env=environment), folder)


def test_192_processes_wait_for_a_dead_node_and_find_each_other(slurm: OneHostSlurm, tmp_path: Path) -> None:
    last = slurm.nodes - 1
    slurm.kill_node(last)
    slurm.set_nodes(f"node{last}", "DOWN")  # as the controller does by itself after SlurmdTimeout
    try:
        result = submit(slurm, tmp_path, "meet", nodes=slurm.nodes, ranks_per_node=8)
        slurm.wait_until(lambda: "DOWN" in slurm.ask("squeue", "-h", "-j", result.job, "-o", "%r"))
        assert slurm.state(result.job) == "PENDING" and not result.starts
    finally:
        slurm.start_node(last)
    assert result.ends() == "COMPLETED", result.log
    (start,) = result.starts
    assert start["met"] == list(range(192)) and start["local_world_size"] == 8


@pytest.fixture(scope="module")
def together(slurm: OneHostSlurm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Submitted]:
    """Submit a job of each of these behaviours."""
    behaviours = ("wait", "mistake", "one_rank_dies")
    return {name: submit(slurm, tmp_path_factory.mktemp(name), name) for name in behaviours}


def test_a_pre_empted_job_is_started_again_and_a_cancelled_one_is_not(together: dict[str, Submitted]) -> None:
    result = together["wait"]
    result.starts_are(1)
    result.slurm.ask("scancel", "--signal=TERM", result.job)  # of its ranks, as a partition's GraceTime does
    result.starts_are(2)
    result.slurm.ask("scancel", result.job)
    assert result.ends() == "CANCELLED"
    assert len(result.starts) == 2


def test_a_user_s_mistake_ends_the_job_at_once(together: dict[str, Submitted]) -> None:
    result = together["mistake"]
    assert result.ends() == "FAILED"
    assert len(result.starts) == 1 and "not started again" in result.log


def test_a_rank_that_always_dies_gives_up_after_three_starts(together: dict[str, Submitted]) -> None:
    result = together["one_rank_dies"]
    assert result.ends() == "FAILED", result.log
    assert len(result.starts) == 3 and "crashed 3 times" in result.log


# ---- a study: Snakemake's own plugin, sbatch and srun, nodes, signals, kills, daemons that die -------


def start_with_a_node_down(desk: Desk) -> Process:
    """Start Snakemake; its trainings wait until the second of the two nodes that they may have is up."""
    desk.slurm.kill_node(1)
    desk.slurm.set_nodes("node1", "DOWN")  # as the controller does by itself after SlurmdTimeout
    desk.slurm.set_nodes("node[2-23]", "DRAIN")
    try:
        started = desk.start()
        desk.wait(lambda: [*desk.jobs("calm").values(), *desk.jobs("shaken").values()] == ["PENDING"] * 2)
        # the other is behind it
        desk.wait(lambda: desk.slurm.ask("squeue", "-h", "-o", "%r").count(" DOWN") == 1)
    finally:
        desk.slurm.start_node(1)
        desk.slurm.set_nodes("node[2-23]", "RESUME")
    return started


def kill_and_start_again(desk: Desk, first: Process) -> Process:
    """Start another Snakemake in place of one that is killed; its jobs wait for the first one's."""
    kill(first)
    desk.unlock()
    second = desk.start()
    desk.wait(lambda: desk.slurm.ask("squeue", "-h", "--states=PENDING", "-o", "%E").count("afterany:") == 2)
    return second


def test_a_training_that_is_disturbed_in_every_way_ends_in_the_same_tables(desk: Desk) -> None:
    """Two trainings with the same settings, side by side. A node is down when they are submitted, and Snakemake is
    killed. Then one of them, ``shaken``, comes to its time limit, goes on without a controller and under a new one, and
    loses a rank to its disk, and a node. Pre-emption ends a job as its time limit does, and is left to the stub.
    """
    first = start_with_a_node_down(desk)
    desk.suspend_at(5)  # until the second Snakemake has submitted its jobs
    (job,) = desk.jobs("shaken")
    second = kill_and_start_again(desk, first)
    desk.resume("calm")

    desk.reach_time_limit("shaken", job)
    desk.wait(lambda: desk.said("shaken", "resumed from") == 1)
    desk.wait_for_steps("shaken", 5)

    assert desk.said("shaken", "stopped by a signal") == 1

    desk.suspend("shaken")  # it has few steps left to be disturbed in
    desk.slurm.kill_controller()
    desk.resume("shaken")
    desk.wait_for_steps("shaken", 5)
    desk.suspend("shaken")
    desk.slurm.start_controller()
    desk.slurm.wait_for(job, "RUNNING")

    desk.resume("shaken")
    desk.meet_eio(rank=1)
    (error,) = [line["error"] for line in attempts(desk.run_folder("shaken")) if "shard" in line.get("error", "")]
    assert f"rank 1 on {gethostname()}: cannot read the shard" in error and ".tar: Input/output error" in error
    desk.wait(lambda: desk.said("shaken", "resumed from") == 2)
    desk.wait_for_steps("shaken", 5)

    node = desk.first_node(job)  # with the batch script
    desk.slurm.kill_node(node)
    desk.slurm.set_nodes(f"node{node}", "DOWN")  # as the controller does by itself after SlurmdTimeout
    try:
        assert desk.ends(second) == 0, desk.explain()
    finally:
        desk.slurm.start_node(node)

    for run, resumed in (("calm", 0), ("shaken", 3)):
        assert (desk.result(run)["world_size"], desk.result(run)["steps"]) == (4, STEPS)
        assert desk.said(run, "resumed from") == resumed
        assert desk.said(run, "wrote ") == 1, "the second Snakemake's job takes the result of the first one's"
        assert set(desk.jobs(run).values()) == {"COMPLETED"} and len(desk.jobs(run)) == 2
    assert same_weights(*(desk.folder / desk.weights(run) for run in RUNS))
    assert desk.outcomes("calm") == desk.outcomes("shaken")
    cells = desk.cells("calm")
    assert cells == desk.cells("shaken")
    recalls = cells["retrieval"].values()
    assert all(cell["value"] > 2 * cell["chance"] for cell in recalls), recalls
