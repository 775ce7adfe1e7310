"""Launching real ranks without a launcher."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore

from tests.support.processes import Process

ROOT = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_"))}
    fixed = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    return {**clean, **fixed, **more}


class Ranks:
    """Processes with a launcher's environment, but no launcher: quick to start, and signals reach each.

    This process holds the store at which they meet, as torchrun's agent does, at a port that the system gives: a port
    that was only found free may be another's connection by the time a rank listens there. Ranks that form several
    process groups in turn need a store for each (``groups``): MASTER_PORT is the first, and NEXT_PORTS has the others.
    """

    def __init__(self, world_size: int, arguments: list[str], log: Path, groups: int = 1, **more: str) -> None:
        self.log = log
        log.write_bytes(b"")
        self.stores = [TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in range(groups)]
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
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"ranks did not end:\n{self.text()[-3000:]}")
        return codes

    def result(self) -> Any:
        """Return the JSON that a rank prints behind RESULT, after all have ended without an error."""
        assert set(self.wait()) == {0}, self.text()[-3000:]
        line = next(line for line in self.text().splitlines() if line.startswith("RESULT"))
        return json.loads(line.removeprefix("RESULT"))

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def text(self) -> str:
        return self.log.read_text(errors="replace")
