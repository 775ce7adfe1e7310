"""Faults in the middle of a training: what it says, how it ends, and that it goes on (the table in docs/status.md)."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from filip.runs.saved_files import complete_checkpoints
from filip.train.launcher_env import LOST_CONTACT
from tests.support.launched_ranks import Ranks, environment
from tests.support.training import losses, run_many, train_arguments

TORCHRUN = str(Path(sys.executable).parent / "torchrun")


@pytest.mark.slow
def test_torchrun_restarts_a_training_whose_rank_was_killed(squares: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    arguments = train_arguments(squares, run, "max_steps=12", "checkpoint.every_steps=2", "engine=ddp")
    command = [TORCHRUN, "--standalone", "--nproc_per_node", "2", "--max-restarts", "1", *arguments]
    with open(log, "wb") as out:
        launcher = subprocess.Popen(command, env=environment(), stdout=out, stderr=out)
    while not complete_checkpoints(run / "checkpoints") and launcher.poll() is None:
        time.sleep(0.02)
    trainers = [child for child in psutil.Process(launcher.pid).children() if "filip.train" in child.cmdline()]
    assert len(trainers) == 2, log.read_text()[-2000:]
    trainers[1].send_signal(signal.SIGKILL)
    assert launcher.wait(600) == 0, log.read_text()[-3000:]
    assert "resumed from" in log.read_text() and len(losses(run)) == 12


FAULTY = """
import os, runpy, signal, sys, torch
from filip.train import loop

fault, take = sys.argv.pop(1), loop.take_step

def faulty(run, batches):
    if run.state.step == 6 and os.environ["RANK"] == "1":
        torch.empty(2**50, dtype=torch.uint8) if fault == "memory" else signal.pause()
    take(run, batches)

loop.take_step = faulty
runpy.run_module("filip.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_others_after_the_time_out(squares: Path, tmp_path: Path) -> None:
    _, _, *arguments = train_arguments(squares, tmp_path / "run", "max_steps=9", "engine=ddp", "timeout_minutes=0.05")
    ranks = Ranks(2, ["-c", FAULTY, "hang", *arguments], tmp_path / "log")
    code = ranks.processes[0].wait(600)
    ranks.kill()
    assert code == 1 and "error: rank 0 on" in ranks.text() and LOST_CONTACT in ranks.text(), ranks.text()[-3000:]


@pytest.mark.slow
def test_out_of_memory_is_a_sentence_that_names_what_needs_less(squares: Path, tmp_path: Path) -> None:
    _, _, *arguments = train_arguments(squares, tmp_path / "run", "max_steps=9", "engine=ddp")
    ranks = Ranks(2, ["-c", FAULTY, "memory", *arguments], tmp_path / "log")
    while ranks.processes[1].poll() is None:
        time.sleep(0.05)
    ranks.kill()
    assert ranks.processes[1].wait(60) == 2
    assert (
        f"error: rank 1 on {os.uname().nodename}: out of memory with 12 pairs in a forward pass. Give gradient_cache=N"
        in ranks.text()
    )
    assert "Traceback" not in ranks.text().split("out of memory")[0]


@pytest.mark.slow
def test_pooling_that_no_term_reads_trains_on_two_ranks(squares: Path, tmp_path: Path) -> None:
    few = ("engine=ddp", "max_steps=4", "optimizer.warmup_steps=1", "model.pooling=attention")
    clip = tmp_path / "clip" / "model.safetensors"
    runs = [
        train_arguments(squares, tmp_path / "clip", *few, "model.interaction=pooled"),
        train_arguments(squares, tmp_path / "token_wise", *few),
        train_arguments(squares, tmp_path / "later", *few, "loss.pooled='switch from 0 to 0.5 at step 2'"),
        train_arguments(squares, tmp_path / "made", *few[:3], f"init_from={clip}", "warm_start.interaction=token_wise"),
    ]
    assert run_many(2, runs, tmp_path / "log") == [0, 0, 0, 0]
