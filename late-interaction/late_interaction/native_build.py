"""Build the native library once per user, PyTorch version, compiler and source text, and cache it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

CACHE_VARIABLE = "LATE_INTERACTION_CACHE"
SOURCES = Path(__file__).with_name("csrc")
_NAME = "late_interaction_native"
# No -ffast-math: it would let the compiler ignore NaN and reorder sums. No -march=native: the cache may be on a disk
# shared by different machines, so wider instruction sets are requested for each file and chosen at run time.
_FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-ffp-contract=fast", "-fvisibility=hidden", "-g0"]


class BuildError(RuntimeError):
    """The reason why the library does not exist, in one line."""


def library_path() -> Path:
    """Return the compiled library, built now if it is not in the cache. Raises BuildError."""
    library = _place()
    folder = library.parent
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / "building"):
            if not library.exists():  # another process may have built it while this one waited
                for abandoned in folder.glob("build-*"):
                    shutil.rmtree(abandoned, ignore_errors=True)
                _build(library)
    except OSError as error:
        raise BuildError(f"cannot write to {folder} ({error.strerror}); set {CACHE_VARIABLE}") from error
    return library


def ready() -> bool:
    """Return whether there is nothing to wait for: the library is built, or cannot be. Otherwise start to build it.

    Another process builds it, which outlives this one.
    """
    try:
        if _place().exists():
            return True
    except BuildError:
        return True
    command = [sys.executable, "-c", f"from {__name__} import library_path; library_path()"]
    quiet = subprocess.DEVNULL
    subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    return False


def _place() -> Path:
    """Return where the library is or will be. Raises BuildError without a compiler."""
    return cache_folder() / f"native-{_key(_compiler())}" / f"{_NAME}.so"


def cache_folder() -> Path:
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "late-interaction"


def _compiler() -> str:
    """Return the C++ compiler as PyTorch would choose it: $CXX, else c++."""
    if sys.platform == "win32":
        raise BuildError("they are not built on Windows")
    command = os.environ.get("CXX", "c++")
    if not command.strip() or shutil.which(shlex.split(command)[0]) is None:
        raise BuildError(f"no C++ compiler ({command!r} not found; install g++ or set CXX)")
    return command


@functools.cache
def _key(compiler: str) -> str:
    version = subprocess.run([*shlex.split(compiler), "--version"], capture_output=True, text=True).stdout
    parts = [torch.__version__, platform.machine(), compiler, version.split("\n")[0], *_FLAGS]
    digest = hashlib.sha256("\0".join(parts).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one builder work at a time. The kernel drops a killed process's lock, so no stale file can block."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(library: Path) -> None:
    """Build in a separate folder and publish by renaming: the cache never holds half a library."""
    started = time.monotonic()
    print("late_interaction: compiling the native CPU kernels (once)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as folder, _tools_on_path():
        from torch.utils import cpp_extension

        try:
            cpp_extension.load(
                _NAME,
                [str(source) for source in sorted(SOURCES.glob("*.cpp"))],
                extra_cflags=_FLAGS,
                extra_ldflags=["-fopenmp"],
                build_directory=folder,
                is_python_module=False,
            )
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            raise BuildError(f"compilation failed ({_first_error(str(error))})") from error
        os.replace(Path(folder) / library.name, library)
    seconds = time.monotonic() - started
    print(f"late_interaction: native CPU kernels compiled in {seconds:.0f} s", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _tools_on_path() -> Iterator[None]:
    """Put python's folder on PATH, where ninja is in a virtual environment that is not activated."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([before, sysconfig.get_path("scripts")])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wanted = [line for line in lines if "error" in line.lower() and not line.startswith("FAILED")]
    return (wanted or lines or ["no message"])[0 if len(wanted) < 2 else 1][:200]
