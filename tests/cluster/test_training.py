"""A training as Slurm meets it: Snakemake's own plugin, sbatch and srun, signals, kills, and a dead Snakemake."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from tests.cluster.conftest import Desk, kill
from tests.support.training import same_weights

pytestmark = pytest.mark.timeout(900)


def ranks(desk: Desk) -> list[psutil.Process]:
    """The ranks of this study's training, in order; without the workers of their loaders."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if command[1:3] == ["-m", "filip.train"] and any(desk.study["study"] in word for word in command):
            parent = process.parent()
            if parent is None or parent.cmdline()[1:3] != ["-m", "filip.train"]:
                found[int(process.environ()["SLURM_PROCID"])] = process
    return [found[rank] for rank in sorted(found)]


def job(desk: Desk, *states: str) -> str:
    """The one job in ``states``."""
    jobs = [job for job, state in desk.slurm.jobs().items() if state in states]
    assert len(jobs) == 1, desk.explain()
    return jobs[0]


def count(desk: Desk, words: str) -> int:
    return sum(words in message for message in desk.messages())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test leaves the weights of its one uninterrupted training, for the second to compare with."""
    return tmp_path_factory.mktemp("undisturbed") / "model.safetensors"


def test_a_snakemake_that_was_killed_and_started_again_does_not_train_twice(
    desk: Desk, undisturbed: Path
) -> None:
    """The second Snakemake's job waits for the first one's, and takes its result."""
    first = desk.start()
    desk.wait_for_step(1, first)
    for process in ranks(desk):  # until the second Snakemake has submitted its job
        process.suspend()
    kill(first)
    desk.unlock()
    second = desk.start()
    desk.slurm.wait_until(lambda: "PENDING" in desk.slurm.jobs().values(), 300, desk.explain)
    waiting = job(desk, "PENDING")
    assert "afterany" in desk.slurm.ask("squeue", "-h", "-j", waiting, "-o", "%E"), desk.explain()
    for process in ranks(desk):
        process.resume()
    assert desk.ends(second) == 0, desk.explain()
    assert count(desk, "wrote ") == 1 and count(desk, "resumed from") == 0, desk.messages()
    assert desk.result["world_size"] == 4 and desk.result["steps"] == 200
    undisturbed.write_bytes((desk.folder / desk.weights).read_bytes())


def test_a_training_that_is_pre_empted_then_loses_a_rank_ends_with_the_same_weights(
    desk: Desk, undisturbed: Path
) -> None:
    desk.study["train"]["overrides"].append("checkpoint.every_steps=20")
    snakemake = desk.start()
    desk.wait_for_step(5, snakemake)
    desk.slurm.ask("scancel", "--signal=TERM", job(desk, "RUNNING"))
    desk.slurm.wait_until(lambda: count(desk, "stopped by a signal") == 1, 300, desk.explain)
    desk.slurm.wait_until(lambda: count(desk, "resumed from") == 1, 300, desk.explain)
    desk.wait_for_step(45, snakemake)
    ranks(desk)[1].send_signal(signal.SIGKILL)
    assert desk.ends(snakemake) == 0, desk.explain()
    assert count(desk, "resumed from") == 2 and desk.result["steps"] == 200
    assert same_weights(desk.folder / desk.weights, undisturbed)
