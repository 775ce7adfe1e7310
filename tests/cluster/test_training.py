"""Trainings as Slurm meets them: Snakemake's own plugin, sbatch and srun, nodes, signals, kills, a dead Snakemake."""

from __future__ import annotations

import signal

import psutil
import pytest

from tests.cluster.conftest import Desk, kill
from tests.support.training import same_weights

pytestmark = pytest.mark.timeout(1500)


def ranks(desk: Desk, run: str) -> list[psutil.Process]:
    """The ranks of a training of this study, in order; without the workers of their loaders."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if command[1:3] == ["-m", "filip.train"] and f"out={desk.weights(run)}" in command:
            parent = process.parent()
            if parent is None or parent.cmdline()[1:3] != ["-m", "filip.train"]:
                found[int(process.environ()["SLURM_PROCID"])] = process
    return [found[rank] for rank in sorted(found)]


def waiting_for_another(desk: Desk) -> int:
    """Jobs that Slurm starts when another job has ended."""
    return desk.slurm.ask("squeue", "-h", "--states=PENDING", "-o", "%E").count("afterany:")


def test_trainings_that_are_disturbed_in_every_way_end_with_the_same_weights(desk: Desk) -> None:
    """Two trainings with the same settings, side by side, are submitted while all nodes but one are drained. Snakemake
    is killed and started again; then one of them, ``shaken``, is pre-empted and later loses a rank.
    """
    desk.slurm.set_nodes("node[1-23]", "DRAIN")
    first = desk.start()
    desk.wait(lambda: [*desk.jobs("calm").values(), *desk.jobs("shaken").values()] == ["PENDING"] * 2)
    desk.slurm.set_nodes("node[1-23]", "RESUME")
    for run in ("calm", "shaken"):
        desk.wait_for_step(run, 5)
        for process in ranks(desk, run):  # until the second Snakemake has submitted its jobs
            process.suspend()

    kill(first)
    desk.unlock()
    second = desk.start()
    desk.wait(lambda: waiting_for_another(desk) == 2)
    for run in ("calm", "shaken"):
        for process in ranks(desk, run):
            process.resume()

    (job,) = [job for job, state in desk.jobs("shaken").items() if state == "RUNNING"]
    desk.slurm.ask("scancel", "--signal=TERM", job)
    desk.wait(lambda: desk.said("shaken", "resumed from") == 1)
    assert desk.said("shaken", "stopped by a signal") == 1
    desk.wait_for_step("shaken", 45)
    ranks(desk, "shaken")[1].send_signal(signal.SIGKILL)

    assert desk.ends(second) == 0, desk.explain()
    for run, resumed in (("calm", 0), ("shaken", 2)):
        assert (desk.result(run)["world_size"], desk.result(run)["steps"]) == (4, 120)
        assert desk.said(run, "resumed from") == resumed
        assert desk.said(run, "wrote ") == 1, "the second Snakemake's job takes the result of the first one's"
        assert set(desk.jobs(run).values()) == {"COMPLETED"} and len(desk.jobs(run)) == 2
    assert same_weights(*(desk.folder / desk.weights(run) for run in ("calm", "shaken")))
