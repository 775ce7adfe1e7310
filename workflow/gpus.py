"""Give a command its own GPUs: ``python -m workflow.gpus COUNT [port=29500] -- COMMAND …``.

Trainings and evaluations of a study, and of two studies on one machine, would otherwise all take the first GPUs. A lock
per GPU is held for as long as the command and its children live, whatever ends them; a command that finds too few free
waits. ``@gpus`` and ``@port`` in the command become the numbers of its GPUs and a port that no other holder has.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from filip.common.errors import UserError

VARIABLE = "CUDA_VISIBLE_DEVICES"
LOCKS = "FILIP_GPU_LOCKS"  # folder of the locks; by default one for the user in the machine's own temporary folder
STRIDE = 100  # between the ports of two GPUs: a study's own trainings differ by less
WAIT = 2.0  # seconds between two looks at the free ones


def visible() -> list[str]:
    """Return the GPUs that this process may use: from CUDA_VISIBLE_DEVICES, or from nvidia-smi."""
    given = os.environ.get(VARIABLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))]


def take(count: int, gpus: list[str], folder: Path) -> dict[str, int] | None:
    """Lock the first ``count`` free GPUs and return {name: descriptor of its lock}; None if fewer are free.

    Children keep the locks.
    """
    held: dict[str, int] = {}
    for name in gpus:
        lock = os.open(folder / name.replace("/", "_"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        os.set_inheritable(lock, True)
        held[name] = lock
        if len(held) == count:
            return held
    for lock in held.values():
        os.close(lock)
    return None


def wait_for(count: int) -> list[str]:
    """Wait for ``count`` GPUs that nobody else has and lock them for this process and its children.

    Returns none on a machine without GPUs. Raises UserError if the machine has some, but fewer.
    """
    gpus = visible()
    if not gpus:
        return []
    if count > len(gpus):
        raise UserError(
            f"{count} GPUs are asked for and this machine has {len(gpus)}; a training's ranks are the study's "
            "launch.ranks_per_node"
        )
    folder = Path(os.environ.get(LOCKS) or Path(tempfile.gettempdir(), f"filip-gpus-{os.getuid()}"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    waiting = False
    while (held := take(count, gpus, folder)) is None:
        if not waiting:
            print(f"waiting for {count} of {len(gpus)} GPUs", file=sys.stderr, flush=True)
            waiting = True
        time.sleep(WAIT)
    return list(held)


def main(arguments: list[str]) -> None:
    """Replace this process by the command, with its GPUs in CUDA_VISIBLE_DEVICES."""
    before, command = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    count = int(before[0])
    port = int(before[1].partition("=")[2]) if len(before) > 1 else 29500
    mine = wait_for(count)
    if mine:
        os.environ[VARIABLE] = ",".join(mine)
        # a name that is no number (a UUID) has one that is the same for all processes
        port += STRIDE * min(int(name) if name.isdecimal() else sum(name.encode()) % 100 for name in mine)
    numbers = ",".join(mine or [str(number) for number in range(count)])
    command = [word.replace("@gpus", numbers).replace("@port", str(port)) for word in command]
    os.execvp(command[0], command)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
