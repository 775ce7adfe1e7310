"""Run a study: Snakemake with the local profile, in place of this process.

    python -m workflow.run demo --cores 2          # workflow/config/demo.yaml; further arguments are Snakemake's

The same as ``snakemake --configfile workflow/config/demo.yaml --profile workflow/profiles/local --cores 2``, and: one
run of a study at a time, none beside processes that a killed run has left, and no stale lock of Snakemake's in the way.
The locks are flock's, which the kernel frees when Snakemake dies. In a terminal Snakemake shows bars
(``snakemake-logger-plugin-rich``), elsewhere its own lines.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from pathlib import Path

import psutil
import yaml

from filip.common.errors import UserError
from filip.common.progress import say

CONFIGS = Path(__file__).resolve().parent / "config"
LOCAL = "workflow/profiles/local"
FOLDER = Path(".snakemake")
MARK = "FILIP_RUN"  # in the environment of a run's processes: the study's results, as an absolute path


def config_file(study: str) -> Path:
    """Return the config of a study, by its name or path. Raise UserError if it does not exist."""
    for path in (CONFIGS / f"{study}.yaml", Path(study)):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    raise UserError(f"there is no study {study!r} in workflow/config: known are {names}")


def become_the_only_run(study: str, results: str) -> None:
    """Lock a study until this process ends. UserError if another run of it, or processes of one, are at work.

    If no run of any study is at work in this checkout, the locks that a killed Snakemake has left are removed.
    """
    FOLDER.mkdir(exist_ok=True)
    own = os.open(FOLDER / f"run-{study}.lock", os.O_RDWR | os.O_CREAT)
    if not _lock(own, fcntl.LOCK_EX, unknown=True):
        holder = os.pread(own, 20, 0).decode().strip()
        raise UserError(
            f"the study {study} is being run already, by process {holder}: wait until it has ended, or stop it with "
            "Ctrl-C where it runs"
        )
    os.ftruncate(own, 0)
    os.write(own, f"{os.getpid()}\n".encode())
    if left := processes(results):
        pids = " ".join(map(str, left))
        raise UserError(
            f"a killed run of {study} has left processes at work: wait for them, or end them by kill {pids}"
        )
    checkout = os.open(FOLDER / "run.lock", os.O_RDWR | os.O_CREAT)
    if _lock(checkout, fcntl.LOCK_EX, unknown=False):
        shutil.rmtree(FOLDER / "locks", ignore_errors=True)
    _lock(checkout, fcntl.LOCK_SH, unknown=True)
    for lock in (own, checkout):
        os.set_inheritable(lock, True)  # by Snakemake, which takes this process's place
    os.environ[MARK] = results


def _lock(file: int, how: int, unknown: bool) -> bool:
    """Return False if another process holds it, and ``unknown`` on a file system without locks."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return unknown
    return True


def processes(results: str) -> list[int]:
    """Return the processes on this machine that a run with these results has started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == results and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue  # somebody else's, or gone
    return found


def main(arguments: list[str]) -> None:
    """Become Snakemake for the study that the first argument names."""
    config = config_file(arguments[0])
    try:
        study = yaml.safe_load(config.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        study = None
    study = {"study": config.stem, **(study if isinstance(study, dict) else {})}  # the Snakefile reports its faults
    become_the_only_run(str(study["study"]), str(Path("results", str(study["study"])).resolve()))
    command = [sys.executable, "-m", "snakemake", "--configfile", str(config)]
    command += [] if "--profile" in arguments else ["--profile", LOCAL]
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and "--logger" not in arguments:
        command += ["--logger", "rich"]
    # The jobs are commands of this environment, whether it was activated or not.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    takes = f"; this study takes {study['takes']}" if "takes" in study else ""
    say(f"loading Snakemake{takes}")
    os.execv(sys.executable, [*command, *arguments[1:]])


if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0 if sys.argv[1:] else 2)
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
