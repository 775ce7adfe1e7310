"""Files that exist whole or not at all: whatever is killed half-way leaves only a ``.part`` file behind."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filip.errors import UserError


@contextmanager
def replacing(path: str | Path, shared: bool = False) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; on success it replaces ``path``, on failure it is removed.

    The name is fixed (``.NAME.part``), so that a rerun overwrites what a killed run left; ``shared``: a name of
    this process's own, for files that several processes may write at once.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{os.uname().nodename}.{os.getpid()}" if shared else ""
    part = path.with_name(f".{path.name}{own}.part")
    try:
        yield part
        publish(part, path)
    except BaseException as error:
        with suppress(OSError):  # there is none, or the folder is read-only
            part.unlink()
        _name_the_place(error, path)
        raise


def publish(part: Path, path: Path) -> None:
    """Give a finished file its name once its bytes are on the disk: a power cut leaves no name of an empty file."""
    if not part.is_symlink():  # to a file of somebody else's
        sync(part)
    os.replace(part, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _name_the_place(error: BaseException, path: Path) -> None:
    """A write that fails for want of room does not know of which file: the message to the user should."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = str(path)


@contextmanager
def scratch_folder(out: str | Path, keep_on_failure: bool = False) -> Iterator[Path]:
    """A folder ``.NAME.work`` beside ``out`` for intermediate files, removed at the end.

    What a killed run left in it is removed first, unless ``keep_on_failure``: then a failed or killed run
    leaves it and the next run finds its files.
    """
    out = Path(out).resolve()
    folder = out.with_name(f".{out.name}.work")
    if not keep_on_failure:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException as error:
        if not keep_on_failure:
            shutil.rmtree(folder, ignore_errors=True)
        _name_the_place(error, out)
        raise
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def locked(path: str | Path, busy: str | None = None) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path`` (made if need be); the kernel frees it when the process dies.

    busy: message of the UserError when another process holds it; None = wait for it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError(busy or "") from error
        yield


@contextmanager
def claimed(path: str | Path) -> Iterator[bool]:
    """Hold an exclusive lock on the file ``path`` if nobody else does; yields whether this process holds it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. Keys keep their order."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of any JSON-serialisable value, as hex digits; equal values give equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def readable(size: float) -> str:
    """``1.5 GB``; powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit in ("B", "kB") else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
