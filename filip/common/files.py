"""Write files completely or not at all: a writer that is killed half-way leaves only a ``.part`` file behind."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filip.common.errors import UserError, nearest, plain

# Neither the program nor the data are at fault, and the sentence is enough for a person.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SQLITE_FULL = 13  # sqlite3.SQLITE_FULL, without the import
_OF_THE_DISK = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM)
# For a path that the user has typed; for any other it would be a mistake of ours.
_OF_A_PATH = {
    errno.EEXIST: "there is a file of this name; give another name",
    errno.ENOTDIR: "a part of this path is a file, so nothing can be below it; give another folder",
    errno.EISDIR: "this is a folder; give the name of a file",
    errno.ENOENT: "no such file or folder, and none can be made there",
    errno.ENAMETOOLONG: "the name is too long for this file system",
    errno.ELOOP: "the symbolic links of this path go in circles",
    errno.EINVAL: "the file system does not take this name",
}


@contextmanager
def replacing(path: str | Path, shared: bool = False) -> Iterator[Path]:
    """Yield a path next to ``path`` to write to; on success it replaces ``path``, on failure it is removed.

    The name is fixed (``.NAME.part``), so that a rerun overwrites a killed run's file; ``shared``: a name of
    this process, for files that several processes may write at once.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = f".{os.uname().nodename}.{os.getpid()}" if shared else ""
    part = path.with_name(f".{path.name}{suffix}.part")
    with naming(path):
        try:
            yield part
            publish(part, path)
        except BaseException:
            with suppress(OSError):  # the file is missing, or the folder is read-only
                part.unlink()
            raise


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Let a disk error in this block, which writes to ``path``, name the place.

    A write that fails for want of room does not know for which file, and a copy names the file that it reads.
    """
    try:
        yield
    except BaseException as error:
        named = disk_error(error)
        if named is None or named.errno is None:
            raise
        if named.filename is None or named.errno in _FULL:
            named.filename = str(path)
        if named is error:
            raise
        raise named from error


def disk_error(error: BaseException) -> OSError | None:
    """Return the OSError that an error is, or that is behind it where a library in Rust or C++ has written a file."""
    if isinstance(error, OSError):
        return error
    rust = re.search(r"\(os error (\d+)\)", str(error))
    if rust:
        return OSError(int(rust[1]), os.strerror(int(rust[1])))
    if getattr(error, "sqlite_errorcode", None) == _SQLITE_FULL:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if isinstance(error, RuntimeError) and re.search(r"PytorchStreamWriter failed writing|unexpected pos", str(error)):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # torch.save gives no reason
    return None


def publish(part: Path, path: Path) -> None:
    """Give a finished file its name once its bytes are on the disk, so that no power cut leaves an empty one."""
    if not part.is_symlink():  # a link leads to somebody else's file
        sync(part)
    os.replace(part, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def explained(error: OSError, given: Sequence[str]) -> UserError | None:
    """Return a UserError for an error that a disk, or a path among the typed values ``given``, causes."""
    place = error.filename if isinstance(error.filename, str | os.PathLike) else None
    if error.errno in _OF_THE_DISK:
        return UserError(
            f"{place or 'the disk'}: {os.strerror(error.errno)}. What is finished is kept: make room, or give a place "
            "that can be written to, and run the same command again"
        )
    if error.errno in _OF_A_PATH and place is not None and _is_among(Path(place), given):
        return UserError(f"{place}: {_OF_A_PATH[error.errno]}")
    return None


def _is_among(path: Path, values: Sequence[str]) -> bool:
    """Return whether a path was typed, or is below or above one that was."""
    absolute = Path(os.path.abspath(path))
    for value in values:
        for part in filter(None, re.split(r"[\[\],]", value)):
            typed = Path(os.path.abspath(part))
            if absolute.is_relative_to(typed) or typed.is_relative_to(absolute):
                return True
    return False


def check_output(option: str, path: str, kind: str) -> None:
    """Raise UserError if a "file" or "folder" cannot be written at ``path``, before the work that it is for."""
    if not path or "://" in path:
        return
    place = Path(path)
    if kind == "folder" and place.exists() and not place.is_dir():
        raise UserError(f"{option}={path}: this is a file; give a folder")
    if kind == "file" and place.is_dir():
        raise UserError(f"{option}={path}: this is a folder; give the name of a file")
    above = next(parent for parent in [place, *Path(os.path.abspath(place)).parents] if os.path.lexists(parent))
    if above != place and not above.is_dir():
        raise UserError(f"{option}={path}: {above} is a file, so nothing can be below it; give another place")
    if not os.access(above, os.W_OK):
        raise UserError(f"{option}={path}: {above} cannot be written to; give another place")


def nothing_at(path: str | os.PathLike[str], advice: str = "") -> str:
    """Return "there is no file or folder PATH", with the most similar existing name, and ``advice`` at the end."""
    said, near = f"there is no file or folder {str(path)!r}", near_path(path)
    if near is not None:
        return f"{said}; did you mean {near!r}? {advice[:1].upper()}{advice[1:]}".rstrip()
    return f"{said}: {advice}" if advice else said


def near_path(path: str | os.PathLike[str]) -> str | None:
    """Return the path with its first missing part replaced by the most similar name in its folder, or None."""
    place = Path(path)
    first = next((part for part in [*reversed(place.parents), place] if not part.exists()), None)
    if first is None:
        return None
    try:
        near = nearest(first.name, [entry.name for entry in first.parent.iterdir()])
    except OSError:  # not a folder, or one that must not be read
        return None
    rest = place.relative_to(first)
    return next((str(file) for name in near for file in [first.with_name(name) / rest] if file.exists()), None)


@contextmanager
def locked(path: str | Path, busy: str | None = None, shared: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path`` (made if need be); the kernel frees it when the process dies.

    busy: message of the UserError when another process holds it; None = wait for it. shared: together with all others
    that ask for it so.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as lock:  # NFS locks for sharing only readable files
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(lock, kind | (0 if busy is None else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError(busy or "") from error
        yield


@contextmanager
def claimed(path: str | Path) -> Iterator[bool]:
    """Hold an exclusive lock on the file ``path`` if nobody else does; yield whether this process holds it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path, "another process has it"))
        except UserError:
            yield False
            return
        yield True


def write_json(path: str | Path, value: Any, shared: bool = False) -> None:
    """Write ``value`` as indented JSON, atomically. Keys keep their order."""
    with replacing(path, shared) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def json_record(path: str | Path, what: str, *keys: str) -> dict[str, Any]:
    """Return the object in a JSON file. Raises UserError, with ``what`` is expected, if it is none or lacks a key."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(nothing_at(path, f"give {what}")) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not {what}: {plain(error)}") from error
    lacking = [key for key in keys if key not in content] if isinstance(content, dict) else ["{"]
    if lacking:
        raise UserError(f"{path} is not {what}: it has no {lacking[0]!r}")
    return content


def file_state(path: str | Path) -> tuple[int, int] | None:
    """Return size and time of change (ns) of a file; None if there is none. Equal states, equal bytes."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, as hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Return the SHA-256 of any JSON-serialisable value, as hex digits; equal values give equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def readable(size: float) -> str:
    """Return a size as ``1.5 GB``, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit in ("B", "kB") else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
