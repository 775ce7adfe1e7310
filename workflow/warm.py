"""Start a Python module in a process that has PyTorch loaded already: imports take a job 5 to 15 seconds of a core.

    python -m workflow.warm MODULE ARGUMENTS      # as python -m MODULE ARGUMENTS; what the rules of the workflow call

``workflow.run`` starts a server for a study that runs on the CPUs of this machine. It imports once what the jobs need,
and forks for each call: the new process has the caller's arguments, folder, environment and open files, and gets its
signals. What DeepSpeed's launcher starts is forked as well: the launcher is given this module as its Python. Without a
server (another machine, a study on GPUs, ``snakemake`` called by hand) the module just runs.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

SERVER = "FILIP_WARM"  # in the environment: the server's socket
LENGTH = 8  # bytes of a length, and of a signal's number
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
CPU_SECONDS = "processor time: "  # how a line of a job's log begins, the last one of each process


def call(place: str, arguments: list[str]) -> int:
    """Let the server run a module, pass signals on to it, and return its exit code. Raises OSError without a server."""
    import json

    with socket.socket(socket.AF_UNIX) as server:
        server.connect(place)
        request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        content = json.dumps(request).encode()
        socket.send_fds(server, [len(content).to_bytes(LENGTH, "big")], [0, 1, 2])
        server.sendall(content)
        for number in PASSED_ON:
            signal.signal(number, lambda got, _: server.sendall(got.to_bytes(LENGTH, "big")))
        answer = b""
        while part := server.recv(100):
            answer += part
    if not answer:
        print("error: the process that runs this command has ended (workflow.warm)", file=sys.stderr)
        return 1
    code, seconds = json.loads(answer)
    print(f"{CPU_SECONDS}{seconds:.1f} s", file=sys.stderr)
    return int(code)


def main(arguments: list[str]) -> None:
    """Run the module that the first argument names, by the server where there is one."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if arguments else 2)
    if arguments[:2] == ["-u", "-m"]:  # DeepSpeed's launcher takes this for Python itself
        arguments = arguments[2:]
    place = os.environ.get(SERVER)
    if place and os.path.exists(place):
        sys.exit(call(place, arguments))
    os.execv(sys.executable, [sys.executable, "-m", *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
