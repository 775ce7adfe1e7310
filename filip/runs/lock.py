"""Lock the folder of a run, so that one start at a time writes into it."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filip.common.errors import UserError

MINUTES_AFTER_A_KILL = 0.5
SECONDS_BETWEEN_LOOKS = 1.0


@contextmanager
def holding(run_dir: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Lock the folder of a training that no job has started, which would hold the lock. UserError if it is held."""
    run_dir.mkdir(parents=True, exist_ok=True)
    # the loader's processes of a training that was killed live on for some seconds
    if (lock := hold(run_dir / "lock", "a training", say, MINUTES_AFTER_A_KILL)) is None:
        raise UserError(f"another training is at work in {run_dir}: wait for it, stop it, or give another run_dir")
    try:
        yield
    finally:
        os.close(lock)


def hold(place: Path, name: str, say: Callable[[str], None], minutes: float) -> int | None:
    """Lock a run's folder for this process and its children; return the lock, or None if others hold it all along.

    place, name: the file to lock, and who locks it, for others. The host of the last start may have died: the file
    system then frees its lock only after a lease, or when it has given the host up. On a file system without such locks
    a sentence reports it, and the training goes on.
    """
    deadline, spoken = time.monotonic() + 60 * minutes, False
    while True:
        lock = os.open(place, os.O_CREAT | os.O_RDWR, 0o644)  # anew each time: a person may have removed it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 1000).decode(errors="replace").strip() or "a process that left no name"
            os.close(lock)
            if time.monotonic() > deadline:
                say(f"{place} is still held after {minutes:g} minutes, by {holder}")
                return None
            if not spoken:
                spoken = True
                say(
                    f"waiting for {place}, held by {holder}; at most {minutes:g} minutes. If that process is gone for "
                    f"good and its file system has not noticed, remove {place}"
                )
            time.sleep(SECONDS_BETWEEN_LOOKS)
            continue
        except OSError as error:
            say(
                f"the file system of {place} has no locks (flock: {error.strerror}), so nothing here keeps a second "
                "training out of this folder; Slurm's --dependency=singleton with one job name does, and so does a "
                "mount with -o flock (Lustre)"
            )
        me = this_process()
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{name}, {', '.join(f'{k} {v}' for k, v in me.items())}\n".encode(), 0)
        os.set_inheritable(lock, True)
        return lock


def this_process() -> dict[str, Any]:
    """Return what identifies this process to a person."""
    job = os.environ.get("SLURM_JOB_ID")
    return {"host": socket.gethostname(), "process": os.getpid()} | ({"job": job} if job else {})
