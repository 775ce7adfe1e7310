"""The command lines of the README: deepspeed, torchrun, srun, plain python, help."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from filip.common.errors import UserError
from filip.runs.saved_files import complete_checkpoints
from filip.train.launcher_env import (
    FIRST_PORT,
    PORTS,
    MachineError,
    environment_rank,
    fill_environment,
    first_host,
    lost_contact,
)
from filip.train.ranks import Ranks as RankPlace
from filip.train.ranks import start_ranks
from tests.support.launched_ranks import environment
from tests.support.ports import free_port
from tests.support.processes import Process, run_well
from tests.support.training import train_arguments

BIN = Path(sys.executable).parent
LAUNCHED = environment(PATH=f"{BIN}:{os.environ['PATH']}")


@pytest.mark.slow
def test_stopped_under_deepspeed_and_finished_under_torchrun(squares: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ("max_steps=48", "precision=bf16", "log_every=4", "backend=auto")
    arguments = train_arguments(squares, run, *settings)[2:]
    log = tmp_path / "deepspeed.log"
    with open(log, "wb") as out:
        command = [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
        command += ["--module", "filip.train"]
        launcher = subprocess.Popen([*command, *arguments], env=LAUNCHED, stdout=out, stderr=out)
        while "training: 4 of " not in log.read_text() and launcher.poll() is None:
            time.sleep(0.05)
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
    done = subprocess.run([*command, *arguments], env=LAUNCHED, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    for message in ("batch ", "schedule ", "memory ", "loader ", "resumed from"):
        assert message in done.stderr
    result = json.loads((run / "model.json").read_text())
    assert result["steps"] == 48 and result["world_size"] == 2 and result["global_batch"] == 24
    assert result["seconds_per_iteration"] > 0 and result["peak_memory_mb"] > 100
    assert result["config"]["data"]["sources"][0]["shards"] == f"{squares}/shards"
    # Squares are easy: the loss of 24 pairs starts near log(24) = 3.2 and the tiny model learns some of them.
    assert result["final"]["loss"] < 2.5 and result["final"]["i2t_accuracy"] > 0.15


@pytest.mark.slow
def test_tasks_of_srun_find_each_other(squares: Path, tmp_path: Path) -> None:
    """One process runs per task, with Slurm's variables and none of a launcher's; the port follows from the job."""
    port = free_port(FIRST_PORT, FIRST_PORT + PORTS)
    job = {**step(2, "2"), "SLURM_JOB_ID": f"{7 * PORTS + port - FIRST_PORT}", "SLURM_STEP_NODELIST": "localhost"}
    log = tmp_path / "log"
    log.touch()
    arguments = train_arguments(squares, tmp_path / "run", "max_steps=5")
    tasks = [Process(arguments, environment(**job, SLURM_PROCID=f"{n}", SLURM_LOCALID=f"{n}"), log) for n in range(2)]
    assert [task.wait(120) for task in tasks] == [0, 0], log.read_text()[-2000:]
    assert json.loads((tmp_path / "run" / "model.json").read_text())["world_size"] == 2


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[03-07,9]", "node03"),
        ("a[1,3]-x,b", "a1-x"),
        ("r[1-2]n[07-09]", "r1n07"),
        ("gpu1,gpu2", "gpu1"),
        ("alone", "alone"),
    ],
)
def test_the_first_host_of_a_slurm_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def step(tasks: int, per_node: str, **more: str) -> dict[str, str]:
    """Return the variables of a task of srun that our code reads."""
    common = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": f"{tasks}", "SLURM_JOB_ID": "7"}
    return {**common, "SLURM_STEP_TASKS_PER_NODE": per_node, "SLURM_STEP_NODELIST": "n[3-9]", **more}


def test_a_task_of_srun_learns_its_ranks_and_where_all_meet() -> None:
    task = step(20, "8(x2),4", SLURM_PROCID="17", SLURM_LOCALID="1", SLURM_NODEID="2")
    assert environment_rank(task) == 17
    fill_environment(20, task)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [task[name] for name in names] == ["17", "20", "1", "4", "n3", "20007"]
    elsewhere = step(2, "2", SLURM_PROCID="0", SLURM_LOCALID="0", MASTER_ADDR="10.0.0.1")
    fill_environment(None, elsewhere)
    assert elsewhere["MASTER_ADDR"] == "10.0.0.1"


def test_one_process_of_an_allocation_that_srun_did_not_start_is_refused_at_once() -> None:
    batch_script = {"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    with pytest.raises(UserError, match=r"SLURM_NTASKS=16.*srun did not start this process"):
        fill_environment(None, batch_script)
    by_torchrun = {**batch_script, "RANK": "3", "WORLD_SIZE": "16"}
    fill_environment(16, by_torchrun)
    assert environment_rank(by_torchrun) == 3


def test_another_number_of_ranks_than_the_study_s_is_refused() -> None:
    one_task_per_node = step(16, "1(x16)", SLURM_PROCID="0", SLURM_LOCALID="0")
    with pytest.raises(UserError, match="16 ranks were started, and world_size=128"):
        fill_environment(128, one_task_per_node)
    with pytest.raises(UserError, match="1 ranks were started, and world_size=2"):
        fill_environment(2, {})


def test_a_host_without_an_address_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "no-such-host.invalid"}
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MachineError, match=r"'no-such-host\.invalid', has no address here .* set MASTER_ADDR"):
        start_ranks()


@pytest.mark.parametrize(
    ("masks", "wanted", "found"),
    [
        ([{0, 1, 2, 3}, {0, 1, 2, 3}], 12, 1),  # of one mask for the host each has two cores
        ([{0, 1, 2, 3}, {4, 5, 6, 7}], 12, 3),  # a mask each
        ([{0, 1, 2, 3}, {4, 5, 6, 7}], 2, 2),
        ([{0}, {0}], 12, 1),
        ([{0}, {0}], 0, 0),
    ],
)
def test_a_loader_has_no_more_processes_than_its_rank_has_cores(
    masks: list[set[int]], wanted: int, found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = socket.gethostname()
    others = [(here, mask) for mask in masks] + [("elsewhere", {0, 1, 2, 3, 4, 5, 6, 7})]
    monkeypatch.setattr(RankPlace, "gather", lambda *_: others)
    assert RankPlace(0, 3, 0, 2, torch.device("cpu")).loader_processes(wanted) == found


@pytest.mark.slow
@pytest.mark.parametrize(("variables", "threads"), [({"OMP_NUM_THREADS": "1"}, 1), ({"OMP_NUM_THREADS": "3"}, 3)])
def test_a_rank_has_the_threads_of_its_launcher_whatever_snakemake_says(
    variables: dict[str, str], threads: int
) -> None:
    """Snakemake sets MKL_NUM_THREADS to all threads of a job, which PyTorch would follow."""
    code = "from filip.train.ranks import start_ranks; start_ranks(); import torch; print(torch.get_num_threads())"
    given = environment(MKL_NUM_THREADS="2", DS_ACCELERATOR="cpu", **variables)
    assert run_well("-c", code, variables=given, timeout=120).stdout.split()[-1:] == [str(threads)]


WAITING = """
import os, sys, torch, torch.distributed as dist
from filip.train.launcher_env import lost_contact
from filip.train.ranks import start_ranks
ranks = start_ranks(timeout_minutes=600)
dist.all_reduce(torch.ones(1))
if ranks.rank:
    sys.stdin.read()  # as a rank that hangs
ranks.limit(0.02)
try:
    dist.all_reduce(torch.ones(1))
except RuntimeError as error:
    print(lost_contact(error))
"""


@pytest.mark.slow
def test_after_the_first_steps_a_rank_that_hangs_is_found_sooner() -> None:
    meeting = {"DS_ACCELERATOR": "cpu", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    meeting |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    first, second = (
        subprocess.Popen(
            [sys.executable, "-c", WAITING], env=environment(RANK=rank, LOCAL_RANK=rank, **meeting),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) for rank in "01"
    )  # fmt: skip
    printed = first.stdout.readline()  # without the limit the test times out
    second.communicate("")
    first.communicate("")
    assert "Timed out waiting 1200ms" in printed


def test_other_errors_are_not_taken_for_lost_contact() -> None:
    assert lost_contact(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    # ss --kill
    assert lost_contact(RuntimeError("Read error [127.0.0.1]:1: Software caused connection abort"))
    assert lost_contact(ValueError("Connection reset by peer")) is None
    result = lost_contact(RuntimeError("[tcp.cc:1] Timed out waiting 24000ms for recv operation\nmore"))
    assert result is not None and result.endswith("[tcp.cc:1] Timed out waiting 24000ms for recv operation")
