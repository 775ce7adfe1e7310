"""Launching real ranks without a launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
from torch.distributed import TCPStore


def environment(**more: str) -> dict[str, str]:
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_"))
    }
    return {**clean, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **more}


class Process:
    """A process started by :func:`forker`, used like ``subprocess.Popen``."""

    def __init__(self, arguments: list[str], variables: dict[str, str], log: Path) -> None:
        Process.number += 1
        self.place = log.with_name(f".{log.name}.exit{Process.number}")
        request = {"arguments": arguments, "environment": variables, "log": str(log), "exit": str(self.place)}
        server = forker()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(request).encode() + b"\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())

    number = 0

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
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

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the process and everything that it has started."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@cache
def forker() -> subprocess.Popen[bytes]:
    """Return the process that ranks are forked from; it ends with this one."""
    command = [sys.executable, str(Path(__file__).parent / "forker.py")]
    return subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)


class Ranks:
    """Processes with a launcher's environment, but no launcher: quick to start, and signals reach each.

    This process holds the store at which they meet, as torchrun's agent does, at a port that the system gives: a port
    that was only found free may be another's connection by the time a rank listens there. Ranks that form several
    process groups in turn need a store for each (``groups``): MASTER_PORT is the first, and NEXT_PORTS has the others.
    """

    def __init__(
        self, world_size: int, arguments: list[str], log: Path, groups: int = 1, **more: str
    ) -> None:
        self.log = log
        log.write_bytes(b"")
        self.stores = [
            TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in range(groups)
        ]
        port, *others = (str(store.port) for store in self.stores)
        self.processes = []
        for rank in range(world_size):
            variables = {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                "NEXT_PORTS": ",".join(others), "TORCHELASTIC_USE_AGENT_STORE": "True",
            }  # fmt: skip
            self.processes.append(Process(arguments, environment(**variables, **more), log))

    def wait(self, timeout: float = 240) -> list[int]:
        """Return exit codes of all ranks; those left when one has died are killed, as a launcher does."""
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
