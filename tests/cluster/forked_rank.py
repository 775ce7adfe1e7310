"""Stands for a rank that Slurm starts, and lets tests/support/forker.py fork the rank: a start takes 5 CPU seconds.

    python -S tests/cluster/forked_rank.py -m filip.train …

Signals are passed on, the exit code comes back, and the rank dies with this process. Its number stands in a file of the
folder ``forked`` that has the number of this process as its name.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> None:
    own = Path("forked", str(os.getpid())).absolute()
    own.parent.mkdir(exist_ok=True)
    end = own.with_suffix(".exit")
    output, errors = (f"/proc/{os.getpid()}/fd/{number}" for number in (1, 2))
    request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    request |= {"log": output, "errors": errors, "exit": str(end)}
    with socket.socket(socket.AF_UNIX) as forker:  # which kills the rank when this is closed
        forker.connect(os.environ["FILIP_TEST_FORKER"])
        forker.sendall(json.dumps(request).encode() + b"\n")
        rank = int(forker.makefile().readline())

        def pass_on(number: int, _: object) -> None:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.kill(rank, number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCONT):
            signal.signal(number, pass_on)
        own.write_text(str(rank))
        while not end.exists():
            time.sleep(0.05)
    code = int(end.read_text())
    if code == -signal.SIGKILL:
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main(sys.argv[1:])
