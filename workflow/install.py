"""Make .venv and install the project into it; every target of the Makefile begins with this.

    python3.12 workflow/install.py demo      # what `make demo` runs, and a study of `filip new`
    python3.12 workflow/install.py dev       # and what `make test`, `make lint` and `make docs` need
    python3.12 workflow/install.py lock      # choose the versions anew
    python3.12 workflow/install.py demo --gpu v100

Versions come from workflow/envs/lock.txt, and for a V100 those of workflow/envs/v100.txt take precedence. This file
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
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "workflow" / "envs" / "lock.txt"
# The newest PyTorch on PyPI with kernels for a GPU, if not the lock's: 2.10.0's wheel has sm_70, 2.11.0's begins with
# sm_75 (torch._C._cuda_getArchFlags(), which needs no GPU).
GPUS = {"v100": "torch==2.10.0", "a100": None, "h100": None}
UV = "uv>=0.9,<1"
ENGINE = "./late-interaction"  # the loss, a distribution of its own
# Each tier: its extras of pyproject.toml, and the file in .venv that marks them as installed.
TIERS = {"demo": ("demo,export", ".installed"), "dev": ("demo,dev,oracles", ".installed-dev")}
LOCK_HEADER = """\
# The versions that `make setup` installs: constraints, written by `make lock` from pyproject.toml for all its extras
# but img2dataset, and every Python that it runs on.
"""
APART = "img2dataset"  # the extra that would hold back pandas, OpenCV and webdataset: uv gives it an environment
# not local wheels: the lock is for all
INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_STRATEGY", "SSL_CERT_FILE", "ALL_PROXY")
CPU_BUILDS = "https://download.pytorch.org/whl/cpu/"
PATIENCE = 3.0  # seconds until an index that does not answer counts as unreachable


def main() -> None:
    parser = argparse.ArgumentParser(description="Make .venv and install the project into it.")
    parser.add_argument("tier", choices=[*TIERS, "lock"])
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
        if options.tier == "lock":
            return lock()
        gpu = options.gpu or gpu_of_venv()
        if stamp(options.tier).is_file() and stamp(options.tier).read_text() == digest(options.tier, gpu):
            return
    install(options.tier, new=version is None, gpu=options.gpu or gpu_of_venv())


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


def stamp(tier: str) -> Path:
    return VENV / TIERS[tier][1]


def gpu_of_venv() -> str | None:
    """Return the GPU that .venv was made for; None: for none by name."""
    named = VENV / ".gpu"
    return named.read_text() if named.is_file() else None


def digest(tier: str, gpu: str | None = None) -> str:
    """Return a hash of the requirements."""
    files = (ROOT / "pyproject.toml", ROOT / "setup.py", ROOT / ENGINE / "pyproject.toml")
    parts = [TIERS[tier][0], *(file.read_text() for file in files), versions(gpu)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def versions(gpu: str | None) -> str:
    """Return the lock, with the versions for a GPU in place of its own."""
    lines = LOCK.read_text().splitlines()
    if gpu is not None and GPUS[gpu]:
        others = LOCK.with_name(f"{gpu}.txt").read_text().splitlines()
        names = {line.partition("==")[0] for line in others}
        lines = [line for line in lines if line.partition("==")[0] not in names] + others
    return "\n".join(lines) + "\n"


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
    print(f"== installing what {'`make demo`' if tier == 'demo' else '`make test`'} needs, as {shown(LOCK)} says")
    command = [str(VENV / "bin" / "uv"), "pip", "install", "--compile-bytecode", "--python", str(python)]
    chosen = VENV / "versions.txt"
    chosen.write_text(versions(gpu))
    for constraints in [str(chosen), *settings.get("constraint", [])]:
        command += ["--constraint", constraints]
    command += ["--editable", ENGINE, "--editable", f".[{TIERS[tier][0]}]"]
    backend = torch_backend() if gpu is None else None  # the package index's build is for NVIDIA's GPUs
    if subprocess.run(command + (["--torch-backend", backend] if backend else []), cwd=ROOT).returncode:
        fail("the installation failed; uv says above why. The same command continues where it stopped")
    if gpu is not None:
        (VENV / ".gpu").write_text(gpu)
    for one in TIERS if tier == "dev" else [tier]:
        stamp(one).write_text(digest(one, gpu))
    print(f"== installed in {time.monotonic() - began:.0f} s")


def lock() -> None:
    """Write the newest versions that suit all extras on every Python that the project runs on."""
    import tomllib  # from Python 3.11 on, as .venv's

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    command = [str(VENV / "bin" / "uv"), "pip", "compile", "--quiet", "--universal"]
    command += [word for extra in extras if extra != APART for word in ("--extra", extra)]
    command += ["--python-version", f"3.{supported()[0]}", "--no-annotate", "--no-header", "pyproject.toml"]
    command += ["--no-emit-package", "late-interaction"]
    os.environ.update({k: v for k, v in like_pip(pip_settings(VENV / "bin" / "python")).items() if k in INDEXES})

    def chosen(*arguments: str) -> str:
        done = subprocess.run([*command, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            fail("uv found no versions that suit all extras; it says above why")
        return done.stdout

    LOCK.write_text(LOCK_HEADER + chosen("--upgrade"))
    print(f"== wrote {shown(LOCK)}")
    same = {line.partition(";")[0].strip() for line in LOCK.read_text().splitlines()}
    for gpu, torch in GPUS.items():
        if torch is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            fixed, whole = Path(folder, "torch.txt"), Path(folder, "whole.txt")
            fixed.write_text(f"{torch}\n")
            shutil.copy(LOCK, whole)  # which uv changes only where it has to
            chosen("--constraint", str(fixed), "--output-file", str(whole))
            others = [line for line in whole.read_text().splitlines() if line.partition(";")[0].strip() not in same]
        title = f"# `make setup GPU={gpu}`: what differs from lock.txt; written by `make lock`."
        LOCK.with_name(f"{gpu}.txt").write_text("\n".join([title, *others]) + "\n")
        print(f"== wrote {shown(LOCK.with_name(f'{gpu}.txt'))}")


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
        "default-timeout": "UV_HTTP_TIMEOUT",
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
    if answers(CPU_BUILDS):
        print("== no NVIDIA GPU here: PyTorch's build for CPUs (another: UV_TORCH_BACKEND=…)")
        return "cpu"
    print("== PyTorch's index of CPU builds does not answer: PyTorch comes as pip would get it (PyPI: with CUDA, 3 GB)")
    return None


def answers(url: str) -> bool:
    """Return whether a host answers soon, asking in a thread, since looking up its name has no time limit."""
    answered = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE):
                answered.append(True)
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return bool(answered)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        fail("interrupted; the same command continues where it stopped")
