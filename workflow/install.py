"""Make .venv and install the project into it; every target of the Makefile begins with this.

    python3.12 workflow/install.py demo      # what `make demo` runs, and a study of `filip new`
    python3.12 workflow/install.py dev       # and what `make test`, `make lint` and `make docs` need
    python3.12 workflow/install.py demo --gpu v100

Versions come from workflow/envs/lock.txt, or for a V100 from workflow/envs/v100.txt; `make lock` writes both. This file
imports the standard library alone and can be read by old Pythons, since it may have to refuse one that is too old.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCKS = ROOT / "workflow" / "envs"
GPUS = {"v100": "v100.txt", "a100": "lock.txt", "h100": "lock.txt"}
UV = "uv>=0.9,<1"
ENGINE = "./late-interaction"  # the loss, a distribution of its own
# Each tier: its extras of pyproject.toml, and the file in .venv that marks them as installed.
TIERS = {"demo": ("demo,export", ".installed"), "dev": ("demo,dev,oracles", ".installed-dev")}
CPU_BUILDS = "https://download.pytorch.org/whl/cpu/"
PATIENCE = 3.0  # seconds until an index that does not answer counts as unreachable


def main() -> None:
    parser = argparse.ArgumentParser(description="Make .venv and install the project into it.")
    parser.add_argument("tier", choices=TIERS)
    parser.add_argument("--chosen", action="store_true", help="the user named this Python: .venv must be of it")
    parser.add_argument("--gpu", choices=GPUS, help="PyTorch with kernels for it; default: as .venv was made")
    options = parser.parse_args()
    version = version_of_venv()
    if version is None or options.chosen:
        check_python(sys.version_info[:2], f"{sys.executable} is")
    if version is not None:
        check_python(version, f"{shown(VENV)} holds", f"remove it (rm -r {shown(VENV)}) and run the same again")
        if options.chosen and version != sys.version_info[:2]:
            fail(
                f"{shown(VENV)} holds Python {dotted(version)}, and PYTHON= names {dotted(sys.version_info[:2])}: "
                f"remove it first (rm -r {shown(VENV)}), or leave PYTHON= out"
            )
    named = VENV / ".gpu"  # the GPU that .venv was made for
    gpu = options.gpu or (named.read_text() if named.is_file() else None)
    stamp = VENV / TIERS[options.tier][1]
    if not (stamp.is_file() and stamp.read_text() == digest(options.tier, gpu)):
        install(options.tier, new=version is None, gpu=gpu)


def fail(sentence: str) -> NoReturn:
    raise SystemExit(f"error: {sentence}")


def shown(path: Path) -> str:
    return os.path.relpath(path)


def dotted(version: tuple) -> str:
    return ".".join(map(str, version))


def supported() -> tuple:
    """Return the first Python that the project runs on and the first that it does not, as in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text()
    return tuple(map(int, re.findall(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', text)[0]))


def check_python(version: tuple, subject: str, remedy: str = "") -> None:
    first, after = supported()
    if not (3, first) <= tuple(version) < (3, after):
        choose = f"name another: make … PYTHON=python3.{first + 1}"
        fail(f"{subject} Python {dotted(version)}; FILIP runs on 3.{first} to 3.{after - 1}: {remedy or choose}")


def version_of_venv() -> tuple | None:
    """Return the Python of .venv; None if there is none yet."""
    if not VENV.is_dir():
        return None
    config = VENV / "pyvenv.cfg"
    version = re.search(r"^version(?:_info)? *= *(\d+)\.(\d+)", config.read_text(), re.M) if config.is_file() else None
    if version is None or not os.access(VENV / "bin" / "python", os.X_OK):
        fail(f"{shown(VENV)} has no Python that runs: remove it (rm -r {shown(VENV)}) and run the same again")
    return tuple(map(int, version.groups()))


def lock_of(gpu: str | None) -> Path:
    """Return the file of the versions for a GPU; None: for none by name."""
    return LOCKS / (GPUS[gpu] if gpu else "lock.txt")


def digest(tier: str, gpu: str | None = None) -> str:
    """Return a hash of the requirements."""
    files = (ROOT / "pyproject.toml", ROOT / "setup.py", ROOT / ENGINE / "pyproject.toml", lock_of(gpu))
    return hashlib.sha256("\0".join([TIERS[tier][0], *(file.read_text() for file in files)]).encode()).hexdigest()


def install(tier: str, new: bool, gpu: str | None = None) -> None:
    began = time.monotonic()
    python = VENV / "bin" / "python"
    if new:
        print(f"== making {shown(VENV)} with Python {dotted(sys.version_info[:3])} ({sys.executable})")
        try:
            made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], stdout=subprocess.DEVNULL).returncode == 0
        except BaseException:  # half of it would pass for the whole next time
            shutil.rmtree(VENV, ignore_errors=True)
            raise
        if not made:
            shutil.rmtree(VENV, ignore_errors=True)
            fail(
                f"{sys.executable} could not make {shown(VENV)}: install its modules venv and ensurepip "
                f"(Debian, Ubuntu: apt install python{dotted(sys.version_info[:2])}-venv), or name another "
                "Python: make … PYTHON=/path/to/python3"
            )
    if not (VENV / "bin" / "uv").exists():
        print("== fetching uv, which installs the rest")
        if subprocess.run([str(python), "-m", "pip", "install", "--disable-pip-version-check", "-q", UV]).returncode:
            fail(f"pip could not install {UV}, as it says above; is the package index reachable?")
    settings = pip_settings(python)
    os.environ.update(like_pip(settings))
    needed_by = "`make demo`" if tier == "demo" else "`make test`"
    print(f"== installing what {needed_by} needs, as {shown(lock_of(gpu))} says")
    command = [str(VENV / "bin" / "uv"), "pip", "install", "--compile-bytecode", "--python", str(python)]
    for constraints in [str(lock_of(gpu)), *settings.get("constraint", [])]:
        command += ["--constraint", constraints]
    command += ["--editable", ENGINE, "--editable", f".[{TIERS[tier][0]}]"]
    backend = torch_backend() if gpu is None else None  # the package index's build is for NVIDIA's GPUs
    if subprocess.run(command + (["--torch-backend", backend] if backend else []), cwd=ROOT).returncode:
        fail("the installation failed; uv says above why. The same command continues where it stopped")
    if gpu is not None:
        (VENV / ".gpu").write_text(gpu)
    for one in TIERS if tier == "dev" else [tier]:
        (VENV / TIERS[one][1]).write_text(digest(one, gpu))
    print(f"== installed in {time.monotonic() - began:.0f} s")


def pip_settings(python: Path) -> dict:
    """Return the options in pip's configuration files and PIP_* variables, each as a list of words."""
    listed = subprocess.run([str(python), "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    settings = {}
    for section in ("global", "install", ":env:"):  # the later wins, as with pip
        for name, value in re.findall(rf"^{section}\.([\w-]+)=(.*)$", listed, re.M):
            settings[name] = ast.literal_eval(value).split()
    return settings


def like_pip(settings: dict) -> dict:
    """Return pip's settings as environment variables for uv, which reads neither pip.conf nor PIP_* variables.

    The user's own settings of uv stay.
    """
    names = {
        "index-url": "UV_DEFAULT_INDEX",
        "extra-index-url": "UV_INDEX",
        "find-links": "UV_FIND_LINKS",
        "no-index": "UV_NO_INDEX",
        "trusted-host": "UV_INSECURE_HOST",
        "cert": "SSL_CERT_FILE",
        "proxy": "ALL_PROXY",
        "timeout": "UV_HTTP_TIMEOUT",
    }
    found = {
        variable: ("," if name == "find-links" else " ").join(settings[name])
        for name, variable in names.items()
        if settings.get(name)
    }
    if "UV_INDEX" in found:  # pip takes the best version of all its indexes; uv would ask the first one only
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return {variable: value for variable, value in found.items() if variable not in os.environ}


def torch_backend() -> str | None:
    """Return `cpu` on a machine without a GPU if PyTorch's own index answers; None: as the package index has it."""
    if sys.platform != "linux" or os.environ.get("UV_TORCH_BACKEND"):
        return None
    if shutil.which("nvidia-smi") or list(Path("/dev").glob("nvidia[0-9]*")):
        return None  # the package index's build is for NVIDIA's GPUs
    # in a process: looking up the host's name has no time limit
    ask = f"import urllib.request; urllib.request.urlopen({CPU_BUILDS!r})"
    try:
        subprocess.run([sys.executable, "-c", ask], timeout=PATIENCE, check=True, capture_output=True)
    except subprocess.SubprocessError:
        print("== PyTorch's index of CPU builds does not answer: PyTorch comes as pip gets it (PyPI: 3 GB with CUDA)")
        return None
    print("== no NVIDIA GPU here: PyTorch's build for CPUs (another: UV_TORCH_BACKEND=…)")
    return "cpu"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("interrupted; the same command continues where it stopped")
