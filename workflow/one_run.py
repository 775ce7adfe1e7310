"""Allow one run of a study at a time: lock it, find the rest of a killed run, and end all processes of a run.

A run holds two advisory locks, which the kernel frees when its last process with them dies: one on its study, and a
shared one on the checkout, without which no other run is at work here. Every process that a run starts on this
machine carries the study's folder in its environment, and is found by it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import psutil

from filip.common.errors import UserError

MARK = "FILIP_RUN"  # in the environment of a run's processes: the study's results, as an absolute path
HELD = "FILIP_RUN_HELD"  # in Snakemake's: the process that started it holds the locks
SNAKEMAKE_LOCKS = Path(".snakemake/locks")
FOLDER = Path(".snakemake")


_locks: list[IO[str]] = []  # open, and so held, until this process ends


def take(study: str) -> tuple[int, ...]:
    """Become the only run of a study here. Raise UserError if another one is at work.

    It stays the only one until this process ends, and the children that are given the files with the returned numbers.
    If no run of any study is at work in this checkout, the locks that a killed Snakemake has left are removed.
    """
    FOLDER.mkdir(exist_ok=True)
    lock = open(FOLDER / f"run-{study}.lock", "a+", encoding="utf-8")  # noqa: SIM115
    if not _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
        lock.seek(0)
        raise UserError(
            f"the study {study} is being run already, by process {lock.read().strip() or 'unknown'}: wait until it has "
            "ended, or stop it with Ctrl-C where it runs"
        )
    _locks.append(lock)
    name_holder(os.getpid())
    checkout = open(FOLDER / "run.lock", "a+", encoding="utf-8")  # noqa: SIM115
    if _lock(checkout, fcntl.LOCK_EX | fcntl.LOCK_NB):
        shutil.rmtree(SNAKEMAKE_LOCKS, ignore_errors=True)
    _lock(checkout, fcntl.LOCK_SH)
    _locks.append(checkout)
    return lock.fileno(), checkout.fileno()


def name_holder(process: int) -> None:
    """Write the process that a second start of the study names: Snakemake, which outlives a killed parent."""
    study = _locks[0]
    study.truncate(0)
    study.write(f"{process}\n")
    study.flush()


def _lock(file: IO[str], how: int) -> bool:
    """Return False if another process holds it. File systems without such locks are taken for free ones."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError:
        return not how & fcntl.LOCK_NB  # nobody can tell: remove nothing
    return True


def mark(results: str | Path) -> None:
    """Mark the processes that are started from now on as this run's."""
    os.environ[MARK] = str(Path(results).resolve())


def processes(results: str | Path) -> list[psutil.Process]:
    """Return the processes that a run of these results has started on this machine.

    This one and its parents are left out.
    """
    place, me = str(Path(results).resolve()), psutil.Process()
    above = {me.pid, *(parent.pid for parent in me.parents())}
    pids = []
    for process in psutil.process_iter():
        try:
            if process.pid not in above and process.environ().get(MARK) == place:
                pids.append(process)
        except psutil.Error:
            continue  # somebody else's, or gone
    return pids


def end(find: Callable[[], list[psutil.Process]], patience: float) -> int:
    """End processes with a signal that they may answer by saving, and after ``patience`` seconds with SIGKILL.

    Returns how many there were. ``find`` is asked again and again: what ends may start another one.
    """
    deadline, ended = time.monotonic() + patience, set()
    signalled: set[int] = set()
    while alive := [process for process in find() if _is_alive(process)]:
        late = time.monotonic() > deadline
        for process in alive:
            ended.add(process.pid)
            if late or process.pid not in signalled:
                signalled.add(process.pid)
                try:
                    process.send_signal(signal.SIGKILL if late else signal.SIGTERM)
                except psutil.Error:
                    continue
        time.sleep(0.1)
        if time.monotonic() > deadline + 10:
            break  # stuck in the kernel
    return len(ended)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:  # gone since it was found
        return False
