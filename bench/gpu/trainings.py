"""Trainings as a user starts them, through torchrun, on a little data set; and killing one."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from bench.gpu.finding import Place
from tests.support.training import records


def ranks_of(place: Place) -> int:
    """Return the number of ranks: one process per card."""
    return torch.cuda.device_count() if place.device.type == "cuda" else 1


def start(place: Place, arguments: list[str], log: Path, ranks: int) -> subprocess.Popen[bytes]:
    """Start ``-m filip.train …`` on ``ranks`` devices of this machine."""
    environment = dict(os.environ)
    if place.device.type == "cpu":
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    with log.open("ab") as output:
        return subprocess.Popen([*launcher, *arguments], stdout=output, stderr=subprocess.STDOUT, env=environment)


def run(place: Place, arguments: list[str], log: Path, ranks: int) -> None:
    """Train to the end. Raises RuntimeError with the last lines of the log if that is not reached."""
    code = start(place, arguments, log, ranks).wait()
    if code:
        lines = log.read_text(errors="replace").strip().splitlines()
        told = [
            line for line in lines if line.startswith("error:") or "Error: " in line
        ]  # leave out torchrun's summary
        raise RuntimeError(f"exit code {code}: {(told or lines or ['no output'])[0][:400]} ({log})")


def killed_at(place: Place, arguments: list[str], log: Path, ranks: int, run_dir: Path, step: int) -> None:
    """Kill one rank (kill -9) once ``step`` steps are logged. Raises RuntimeError if the training ends before."""
    process = start(place, arguments, log, ranks)
    while not ((run_dir / "log.jsonl").exists() and len(records(run_dir)) >= step):
        if process.poll() is not None:
            raise RuntimeError(f"it ended before it could be killed, exit code {process.returncode} ({log})")
        time.sleep(0.02)
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "filip.train" in " ".join(child.cmdline()):
                child.kill()
                break
    if process.wait() == 0:
        raise RuntimeError(f"it ended before it was killed ({log})")
