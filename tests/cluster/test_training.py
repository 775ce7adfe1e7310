"""A study on Slurm: Snakemake's own plugin, sbatch and srun, nodes, signals, kills, daemons that die."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import STEPS, Desk, kill
from tests.support.training import same_weights

pytestmark = pytest.mark.timeout(1500)
RUNS = ("calm", "shaken")


def start_with_a_node_down(desk: Desk) -> subprocess.Popen[str]:
    """Snakemake; its trainings wait until the second of the two nodes that they may have is up."""
    desk.slurm.kill_node(1)
    desk.slurm.set_nodes("node1", "DOWN")  # as the controller does by itself after SlurmdTimeout
    desk.slurm.set_nodes("node[2-23]", "DRAIN")
    try:
        started = desk.start()
        desk.wait(lambda: [*desk.jobs("calm").values(), *desk.jobs("shaken").values()] == ["PENDING"] * 2)
        desk.wait(
            lambda: desk.slurm.ask("squeue", "-h", "-o", "%r").count(" DOWN") == 1
        )  # the other is behind it
    finally:
        desk.slurm.start_node(1)
        desk.slurm.set_nodes("node[2-23]", "RESUME")
    return started


def kill_and_start_again(desk: Desk, first: subprocess.Popen[str]) -> subprocess.Popen[str]:
    """Another Snakemake in place of one that is killed; its jobs wait for those of the first."""
    kill(first)
    desk.unlock()
    second = desk.start()
    desk.wait(lambda: desk.slurm.ask("squeue", "-h", "--states=PENDING", "-o", "%E").count("afterany:") == 2)
    return second


def set_time_limit(desk: Desk, job: str, minutes: int) -> None:
    desk.slurm.ask("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")


def ranks(desk: Desk, run: str) -> list[psutil.Process]:
    """The ranks of a training of this study, in order; without the workers of their loaders."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if command[1:3] == ["-m", "filip.train"] and f"out={desk.weights(run)}" in command:
            with contextlib.suppress(psutil.NoSuchProcess):  # it, or its parent, has just ended
                parent = process.parent()
                if parent is None or parent.cmdline()[1:3] != ["-m", "filip.train"]:
                    found[int(process.environ()["SLURM_PROCID"])] = process
    return [found[rank] for rank in sorted(found)]


def suspend(desk: Desk, run: str) -> None:
    for process in ranks(desk, run):
        process.suspend()


def resume(desk: Desk, run: str) -> None:
    for process in ranks(desk, run):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def has_been_sent(process: psutil.Process, number: signal.Signals) -> bool:
    """Whether this signal waits for a suspended process."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    pending = next(line.split()[1] for line in lines if line.startswith("ShdPnd"))
    return bool(int(pending, 16) >> (number - 1) & 1)


def test_a_training_that_is_disturbed_in_every_way_ends_in_the_same_tables(desk: Desk) -> None:
    """Two trainings with the same settings, side by side. A node is down when they are submitted, and Snakemake is
    killed. Then one of them, ``shaken``, comes to its time limit, is pre-empted, goes on without a controller and under
    a new one, and loses a rank and a node.
    """
    first = start_with_a_node_down(desk)
    for run in RUNS:
        desk.wait_for_steps(run, 5)
        suspend(desk, run)  # until the second Snakemake has submitted its jobs
    (job,) = desk.jobs("shaken")
    set_time_limit(desk, job, minutes=10)  # ten minutes before it comes the signal: now
    second = kill_and_start_again(desk, first)
    resume(desk, "calm")

    desk.wait(lambda: all(has_been_sent(process, signal.SIGUSR1) for process in ranks(desk, "shaken")))
    set_time_limit(desk, job, minutes=60)  # of its next start
    resume(desk, "shaken")
    desk.wait(lambda: desk.said("shaken", "resumed from") == 1)
    desk.wait_for_steps("shaken", 5)

    desk.slurm.ask("scancel", "--signal=TERM", job)
    desk.wait(lambda: desk.said("shaken", "resumed from") == 2)
    assert desk.said("shaken", "stopped by a signal") == 2

    suspend(desk, "shaken")  # it has few steps left to be disturbed in
    desk.slurm.kill_controller()
    resume(desk, "shaken")
    desk.wait_for_steps("shaken", 5)
    suspend(desk, "shaken")
    desk.slurm.start_controller()
    desk.slurm.wait_for(job, "RUNNING")

    _, second_rank, *_ = ranks(desk, "shaken")
    second_rank.kill()
    resume(desk, "shaken")
    desk.wait(lambda: desk.said("shaken", "resumed from") == 3)
    desk.wait_for_steps("shaken", 5)

    node = desk.first_node(job)  # with the batch script
    desk.slurm.kill_node(node)
    try:
        assert desk.ends(second) == 0, desk.explain()
    finally:
        desk.slurm.start_node(node)

    for run, resumed in (("calm", 0), ("shaken", 4)):
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
