"""The command lines of the README: deepspeed, torchrun, srun, plain python, help."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from filip.train.checkpoint import complete_checkpoints
from filip.train.ranks import _first_host
from tests.support.launched_ranks import Process, environment, free_port
from tests.support.training import train_arguments

BIN = Path(sys.executable).parent


def launched() -> dict[str, str]:
    return environment(PATH=f"{BIN}:{os.environ['PATH']}")


@pytest.mark.slow
def test_stopped_under_deepspeed_and_finished_under_torchrun(squares: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = train_arguments(
        squares, run, "max_steps=120", "precision=bf16", "log_every=5", "backend=auto"
    )[2:]
    log = tmp_path / "deepspeed.log"
    with open(log, "wb") as out:
        command = [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
        command += ["--no_local_rank", "--module", "filip.train"]
        launcher = subprocess.Popen([*command, *arguments], env=launched(), stdout=out, stderr=out)
        while "step 5/" not in log.read_text() and launcher.poll() is None:
            time.sleep(0.2)
        trainers = [
            child
            for child in psutil.Process(launcher.pid).children(recursive=True)
            if "filip.train" in child.cmdline() and "--module" not in child.cmdline()
        ]
        trainers = [child for child in trainers if not child.children()]
        assert len(trainers) == 2, log.read_text()[-2000:]
        trainers[0].send_signal(signal.SIGUSR1)
        assert launcher.wait(60) == 85, log.read_text()[-2000:]
    assert len(complete_checkpoints(run / "checkpoints")) == 1
    command = [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2", "-m", "filip.train"]
    arguments = train_arguments(
        squares, run, "max_steps=120", "precision=bf16", "log_every=5", "backend=auto"
    )[2:]
    done = subprocess.run([*command, *arguments], env=launched(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    for told in ("batch ", "schedule ", "memory ", "loader ", "resumed from"):
        assert told in done.stderr
    result = json.loads((run / "result.json").read_text())
    assert result["steps"] == 120 and result["world_size"] == 2 and result["global_batch"] == 24
    assert result["seconds_per_iteration"] > 0 and result["peak_memory_mb"] > 100
    assert result["config"]["data"]["sources"][0]["shards"] == f"{squares}/shards"
    # Squares are easy: the loss of 24 pairs starts near log(24) = 3.2 and the tiny model learns some of them.
    assert result["final"]["loss"] < 2.5 and result["final"]["i2t_accuracy"] > 0.15


@pytest.mark.slow
def test_tasks_of_srun_find_each_other(squares: Path, tmp_path: Path) -> None:
    """One process per task, with Slurm's variables and none of a launcher's; the port follows from the job."""
    port = next(p for p in iter(free_port, None) if 20000 <= p < 40000)
    job = {"SLURM_JOB_ID": f"{port - 20000}", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    job |= {"SLURM_STEP_NODELIST": "localhost"}
    log = tmp_path / "log"
    log.touch()
    arguments = train_arguments(squares, tmp_path / "run", "max_steps=5")
    tasks = [
        Process(arguments, environment(**job, SLURM_PROCID=f"{n}", SLURM_LOCALID=f"{n}"), log)
        for n in range(2)
    ]
    assert [task.wait(120) for task in tasks] == [0, 0], log.read_text()[-2000:]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["world_size"] == 2


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node[03-07,9]", "node03"), ("a[1,3]-x", "a1"), ("gpu1,gpu2", "gpu1"), ("alone", "alone")],
)
def test_the_first_host_of_a_slurm_list(nodes: str, first: str) -> None:
    assert _first_host(nodes) == first


def test_help_is_for_people() -> None:
    command = [sys.executable, "-m", "filip.train", "--help"]
    done = subprocess.run(command, env=launched(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "token_keep_ratio=1.0" in done.stdout and "optimizer.warmup_steps=3000" in done.stdout
    command[-1] = "experiment=demo"
    done = subprocess.run(command, env=launched(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "run_dir" in done.stderr and "Traceback" not in done.stderr
