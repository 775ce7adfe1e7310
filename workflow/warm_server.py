"""The server of ``workflow.warm``: imports once, then forks a process for each module that is to run.

    python -m workflow.warm_server SOCKET      # until SIGTERM, or until the process that started it is gone

Nothing runs in the server itself: no thread, no process group, no random number.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import selectors
import shlex
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from workflow.one_run import die_with_parent
from workflow.warm import LENGTH, PASSED_ON, SERVER

LAUNCHERS = ("deepspeed.launcher.", "torch.distributed.run")
PYTHON = ".python"  # after the name of the socket


def import_everything() -> None:
    """Import what trainings, evaluations and the report do, in the order of a training, and build the tokenizer."""
    sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]  # as filip.train.__main__
    for name in (
        "deepspeed.launcher.runner",
        "deepspeed.launcher.launch",
        "torch.utils.tensorboard",
        "filip.train.loop",
        "filip.report.page",
    ):
        with suppress(ImportError):  # the job that needs it says what to install
            importlib.import_module(name)

    from filip.eval.protocols import protocols
    from filip.tokenizer import prepare

    protocols()
    prepare()


class Calls:
    """The processes at work, each with the connection of its caller."""

    def __init__(self, server: socket.socket) -> None:
        self.server = server
        self.waiting = selectors.DefaultSelector()
        self.callers: dict[int, socket.socket] = {}
        self.ended, wakes = os.pipe()
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self.finish)
        self.over = False
        self.waiting.register(server, selectors.EVENT_READ, self.accept)
        self.waiting.register(self.ended, selectors.EVENT_READ, self.reap)

    def serve(self) -> None:
        """Take calls until SIGTERM, and wait for the processes that are at work then."""
        while self.callers or not self.over:
            for key, _ in self.waiting.select():
                key.data()

    def finish(self, *_: object) -> None:
        """Take no more calls. What is at work has got the signal too, and may save."""
        self.over = True

    def accept(self) -> None:
        """Fork for a new call; the new process does not return from here."""
        caller, _ = self.server.accept()
        with suppress(OSError, ValueError, EOFError):
            head, files, _, _ = socket.recv_fds(caller, LENGTH, 3)
            request = json.loads(_exactly(caller, int.from_bytes(head, "big")))
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                self.server.close()
                for other in self.callers.values():
                    other.close()
                caller.close()
                become(request, files)
            for file in files:
                os.close(file)
            self.callers[pid] = caller
            self.waiting.register(caller, selectors.EVENT_READ, lambda: self.pass_on(pid))
            return
        caller.close()

    def pass_on(self, pid: int) -> None:
        """Send the signal that a caller got to its process; end the process if the caller is gone."""
        caller = self.callers[pid]
        with suppress(OSError):
            number = caller.recv(LENGTH)
            if not number:
                self.waiting.unregister(caller)
            with suppress(ProcessLookupError):
                os.kill(pid, int.from_bytes(number, "big") or signal.SIGKILL)

    def reap(self) -> None:
        """Tell the callers of the processes that have ended: exit code, seconds of the processor."""
        os.read(self.ended, 1000)
        while self.callers:
            pid, status, used = os.wait4(-1, os.WNOHANG)
            if not pid:
                return
            caller = self.callers.pop(pid)
            with suppress(KeyError, ValueError):
                self.waiting.unregister(caller)
            code = os.waitstatus_to_exitcode(status)
            answer = [code if code >= 0 else 128 - code, used.ru_utime + used.ru_stime]
            with suppress(OSError):
                caller.sendall(json.dumps(answer).encode())
            caller.close()


def write_python(place: str) -> None:
    """Write what DeepSpeed's launcher is to take for Python: it lets this server fork what the launcher starts."""
    python, client = sys.executable, Path(__file__).with_name("warm.py")
    Path(place + PYTHON).write_text(f'#!/bin/sh\nexec {shlex.quote(python)} -S {shlex.quote(str(client))} "$@"\n')
    Path(place + PYTHON).chmod(0o700)


def _exactly(caller: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        if not (part := caller.recv(count - len(found))):
            raise EOFError
        found += part
    return found


def become(request: dict[str, Any], files: list[int]) -> NoReturn:
    """Become the process that was asked for."""
    code = 1
    try:
        for number in (*PASSED_ON, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for target, file in enumerate(files):
            os.dup2(file, target)
            os.close(file)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        if torch := sys.modules.get("torch"):  # which has read the server's number
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
        sys.argv = request["arguments"]
        if sys.argv[0].startswith(LAUNCHERS):
            sys.executable = request["environment"][SERVER] + PYTHON
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as stopped:
        if not isinstance(stopped.code, int | None):
            print(stopped.code, file=sys.stderr)
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def serve(place: str) -> None:
    """Serve at a socket until SIGTERM; it appears when calls can be made."""
    gc.collect()
    gc.freeze()  # the processes share this memory until somebody writes to it
    write_python(place)
    part = f"{place}.part"
    Path(part).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(part)
        server.listen(64)
        os.rename(part, place)
        Calls(server).serve()


if __name__ == "__main__":
    die_with_parent()
    import_everything()
    serve(sys.argv[1])
