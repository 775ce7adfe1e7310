"""A little data set and the launching of real ranks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.shards import Sample, encoded, write_shard

COLOURS = {
    "red": (220, 30, 30), "green": (30, 160, 40), "blue": (30, 40, 220), "yellow": (240, 220, 40),
    "purple": (140, 40, 160), "orange": (250, 140, 20), "black": (15, 15, 15), "white": (245, 245, 245),
}  # fmt: skip
PLACES = ("left", "right", "top", "bottom")


def write_shards(folder: Path, shards: int, per_shard: int, seed: int = 0) -> None:
    """Shards and side-cars of squares that a colour and a place describe."""
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    for s in range(shards):
        samples = []
        for i in range(per_shard):
            front, back = rng.choice(len(names), 2, replace=False)
            place = int(rng.integers(len(PLACES)))
            image = picture(COLOURS[names[front]], COLOURS[names[back]], PLACES[place])
            text = f"a {names[front]} square at the {PLACES[place]} on {names[back]}"
            candidates = [text, f"{names[front]} square, {PLACES[place]}, {names[back]}"]
            samples.append(Sample(f"{s:05d}{i:04d}", image, candidates, int(front * 64 + back * 8 + place)))
        write_shard(folder, s, samples)


def picture(front: tuple[int, ...], back: tuple[int, ...], place: str) -> bytes:
    pixels = np.zeros((40, 40, 3), np.uint8) + np.array(back, np.uint8)
    rows, columns = {
        "left": (slice(12, 28), slice(2, 18)),
        "right": (slice(12, 28), slice(22, 38)),
        "top": (slice(2, 18), slice(12, 28)),
        "bottom": (slice(22, 38), slice(12, 28)),
    }[place]
    pixels[rows, columns] = front
    return encoded(Image.fromarray(pixels))


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``shards`` and ``captions``: 3 shards of 64 pairs."""
    folder = tmp_path_factory.mktemp("squares")
    write_shards(folder, shards=3, per_shard=64)
    return folder


def environment(**more: str) -> dict[str, str]:
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_"))
    }
    return {**clean, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **more}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A process started by :func:`forker`, used like ``subprocess.Popen``."""

    def __init__(self, arguments: list[str], variables: dict[str, str], log: Path) -> None:
        Process.number += 1
        self.place = log.with_name(f".{log.name}.exit{Process.number}")
        request = {"arguments": arguments, "environment": variables, "log": str(log), "exit": str(self.place)}
        server = forker()
        server.stdin.write(json.dumps(request).encode() + b"\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())

    number = 0

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return int(self.place.read_text()) if self.place.exists() else None

    def wait(self, timeout: float = 60) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise TimeoutError
            time.sleep(0.02)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def forker() -> subprocess.Popen[bytes]:
    """The process that ranks are forked from; it ends with this one."""
    command = [sys.executable, str(Path(__file__).parent / "forker.py")]
    return subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)


class Ranks:
    """Processes with a launcher's environment, but no launcher: quick to start, and signals reach each."""

    def __init__(self, world_size: int, arguments: list[str], log: Path, **more: str) -> None:
        self.log = log
        log.write_bytes(b"")
        port = str(free_port())
        self.processes = []
        for rank in range(world_size):
            variables = {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
            self.processes.append(Process(arguments, environment(**variables, **more), log))

    def wait(self, timeout: float = 240) -> list[int]:
        """Exit codes of all ranks; those left when one has died are killed, as a launcher does."""
        try:
            codes = [self.processes[0].wait(timeout)]
            codes += [p.wait(30) for p in self.processes[1:]]
        except TimeoutError:
            self.kill()
            pytest.fail(f"ranks did not end:\n{self.text()[-3000:]}")
        return codes

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def text(self) -> str:
        return self.log.read_text(errors="replace")


def train_arguments(data: Path, run_dir: Path, *overrides: str) -> list[str]:
    """``-m filip.train`` on the squares with the tiny model; later overrides win."""
    base = {
        "experiment": "demo", "model": "tiny", "run": "test", "run_dir": str(run_dir),
        "out": str(run_dir / "model.safetensors"), "result": str(run_dir / "result.json"),
        "data.sources": f"[{{shards: {data}/shards, captions: {data}/captions}}]",
        "global_batch": "24", "max_steps": "20", "optimizer.warmup_steps": "4", "log_every": "1",
        # a backend that needs no compiler and no compiled cache: the interaction has tests of its own
        "backend": "tiled", "checkpoint.every_minutes": "0", "data.workers": "0", "warmup_timing": "1",
    }  # fmt: skip
    for override in overrides:
        name, _, value = override.partition("=")
        base[name] = value
    return ["-m", "filip.train", *(f"{name}={value}" for name, value in base.items())]
