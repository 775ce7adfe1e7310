"""Processes forked from one that has imported everything, instead of being started: tests/support/forker.py."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

SOCKET = "FILIP_TEST_FORKER"  # in the environment of pytest's workers: where they find the one that they share


class Process:
    """A process that :func:`forker` starts, used like ``subprocess.Popen``; it leads a group as in a new session."""

    def __init__(
        self,
        arguments: Sequence[str],
        variables: Mapping[str, str] | None = None,
        log: Path = Path(os.devnull),
        errors: Path | None = None,
        cwd: Path | None = None,
    ) -> None:
        with tempfile.NamedTemporaryFile(prefix="filip-exit-") as unique:
            self.place = Path(unique.name)
        request = {
            "arguments": list(arguments),
            "environment": dict(os.environ if variables is None else variables),
            "folder": str(cwd or Path.cwd()),
            "log": str(log),
            "errors": str(errors or log),
            "exit": str(self.place),
        }
        server = forker()
        server.write(json.dumps(request).encode() + b"\n")
        server.flush()
        self.pid = int(server.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self.returncode is None and self.place.exists():
            self.returncode = int(self.place.read_text())
            self.place.unlink()
        return self.returncode

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


def run_python(
    *arguments: str, variables: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Do what ``subprocess.run([sys.executable, *arguments], capture_output=True, text=True)`` does."""
    with tempfile.TemporaryDirectory(prefix="filip-forked-") as folder:
        printed, errors = Path(folder, "printed"), Path(folder, "errors")
        printed.touch()
        errors.touch()
        process = Process(arguments, variables, printed, errors, cwd)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(list(arguments), code, printed.read_text(), errors.read_text())


def start_forker(place: Path) -> subprocess.Popen[bytes]:
    """Start the process that others are forked from; it ends with this one."""
    command = [sys.executable, str(Path(__file__).with_name("forker.py")), str(place)]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)


@cache
def forker() -> Any:
    """Return a connection to the process that others are forked from."""
    started = None
    if SOCKET not in os.environ:
        folder = tempfile.mkdtemp(prefix="filip-forker-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ[SOCKET] = str(Path(folder, "socket"))
        started = start_forker(Path(os.environ[SOCKET]))
        _started.append(started)
    end = time.monotonic() + 300
    while not os.path.exists(os.environ[SOCKET]):
        assert started is None or started.poll() is None, "tests/support/forker.py has ended"
        assert time.monotonic() < end, "tests/support/forker.py did not start"
        time.sleep(0.02)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[SOCKET])
    return connection.makefile("rwb")


_started: list[subprocess.Popen[bytes]] = []  # kept: it ends when the pipe to it is closed
