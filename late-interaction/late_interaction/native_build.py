"""Find the native library: in a wheel, or built once per user, compiler and source text, and cached.

Nothing here imports PyTorch: setup.py builds the library of a wheel with it.
"""

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
import tempfile
from collections.abc import Iterator
from pathlib import Path

CACHE_VARIABLE = "LATE_INTERACTION_CACHE"
SOURCES = Path(__file__).with_name("csrc")
PACKAGED = Path(__file__).with_name("kernels.so")  # in a wheel for one platform
# No -ffast-math: it would let the compiler ignore NaN and reorder sums. No -march=native: wheels, and a cache on a disk
# that different machines share, hold all instruction sets; each file asks for its own, and one is chosen at run time.
_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-ffp-contract=fast", "-fvisibility=hidden", "-g0"]


class BuildError(RuntimeError):
    """The reason why the library does not exist, in one line."""


def library_path() -> Path:
    """Return the compiled library, built now if neither the wheel nor the cache has it. Raises BuildError."""
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
                print("late_interaction: compiling the native CPU kernels (once)", file=sys.stderr, flush=True)
                compile_library(library)
    except OSError as error:
        raise BuildError(f"cannot write to {folder} ({error.strerror}); set {CACHE_VARIABLE}") from error
    return library


def _place() -> Path:
    """Return where the library is or will be. Raises BuildError without a compiler."""
    return PACKAGED if PACKAGED.exists() else cache_folder() / f"native-{_key(_compiler())}" / PACKAGED.name


def cache_folder() -> Path:
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "late-interaction"


def _compiler() -> str:
    """Return the C++ compiler: $CXX, else c++."""
    if sys.platform == "win32":
        raise BuildError("they are not built on Windows")
    command = os.environ.get("CXX", "c++")
    if not command.strip() or shutil.which(shlex.split(command)[0]) is None:
        raise BuildError(f"no C++ compiler ({command!r} not found; install g++ or set CXX)")
    return command


def why_not_here() -> str:
    """Return why the kernels cannot be compiled here, tried on an empty file; "" if they can."""
    try:
        _run([*shlex.split(_compiler()), *_FLAGS, "-fsyntax-only", "-x", "c++", os.devnull])
    except (BuildError, OSError) as error:
        return str(error)
    return ""


@functools.cache
def _key(compiler: str) -> str:
    parts = [platform.machine(), compiler, _version(compiler).split("\n")[0], *_FLAGS]
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


def compile_library(library: Path) -> None:
    """Compile all sources at once, in a separate folder, and publish by renaming: there is never half a library.

    It is linked without a runtime of OpenMP, and finds PyTorch's in the process that loads it. Clang's code asks
    for another one than the GNU runtime of PyTorch's Linux builds. Raises BuildError.
    """
    compiler = shlex.split(_compiler())
    openmp, link = ["-fopenmp"], ["-shared"]
    if sys.platform == "darwin":
        openmp, link = ["-Xclang", "-fopenmp"], ["-shared", "-undefined", "dynamic_lookup"]
    elif "clang" in _version(_compiler()):
        link += openmp
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as folder:
        sources = sorted(SOURCES.glob("*.cpp"))
        objects = [f"{folder}/{source.stem}.o" for source in sources]
        _run(*([*compiler, *_FLAGS, *openmp, "-c", str(a), "-o", b] for a, b in zip(sources, objects, strict=True)))
        _run([*compiler, *link, *objects, "-o", f"{folder}/{library.name}"])
        os.replace(Path(folder) / library.name, library)


def _run(*commands: list[str]) -> None:
    """Run compilers side by side; raise BuildError with the first complaint."""
    jobs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [job.communicate()[1] for job in jobs]
    lines = [line.strip() for job, text in zip(jobs, said, strict=True) if job.returncode for line in text.splitlines()]
    if any(job.returncode for job in jobs):
        complaint = next((line for line in lines if "error" in line), "no message")
        raise BuildError(f"compilation failed ({complaint[:200]})")


def _version(compiler: str) -> str:
    return subprocess.run([*shlex.split(compiler), "--version"], capture_output=True, text=True).stdout
