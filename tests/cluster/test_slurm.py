"""A study on a real Slurm: what becomes of its trainings, whatever happens to their nodes.

All in one file, so that one process runs it: this Slurm has the machine's names.
"""

from pathlib import Path
from socket import gethostname

import psutil
import pytest

from filip.train.supervise import attempts
from tests.cluster.desk import RUNS, STEPS, Desk, kill
from tests.cluster.one_host_slurm import DAEMONS, DEFAULT_PLACE, FILES, OneHostSlurm, why_not
from tests.support.processes import Process
from tests.support.training import same_weights
from workflow.study import ROOT

pytestmark = pytest.mark.timeout(1500)


def test_no_daemon_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    """Before the session's Slurm, whose ports it uses."""
    if reason := why_not():
        pytest.skip(reason)
    log = tmp_path / "log"
    cluster = Process(["-m", "tests.cluster.one_host_slurm", str(tmp_path), "2"], log=log, cwd=ROOT)
    OneHostSlurm.wait_until(lambda: log.exists() and "idle" in log.read_text(), 60)
    assert daemons()
    kill(cluster)
    OneHostSlurm.wait_until(lambda: not daemons(), 60)  # and then the links to their configuration go
    OneHostSlurm.wait_until(lambda: not any((DEFAULT_PLACE / name).is_symlink() for name in FILES), 60)


def daemons() -> list[str]:
    return [name for process in psutil.process_iter(["name"]) if (name := process.info["name"]) in DAEMONS]


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
    loses a rank to its disk, and a node.
    Pre-emption ends a job as its time limit does.
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

    node = int(desk.slurm.ask("squeue", "-h", "-j", job, "-o", "%B").removeprefix("node"))  # of the batch script
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
