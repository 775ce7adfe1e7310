"""Snakemake as a user starts it, in a clone of this repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.processes import run_python
from workflow.study import ROOT


def run_snakemake(*arguments: str, cwd: Path, config: Path, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    profile = ["--profile", str(cwd / "workflow/profiles/local"), "--cores", "2"]
    command = ["-m", "snakemake", "--configfile", str(config), *profile, *arguments]
    return run_python(*command, variables=environment_of(cwd), cwd=cwd, timeout=timeout)


def run_study(*arguments: str, cwd: Path, config: Path, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    """Run a study as ``make run`` does."""
    command, environment = study_command(*arguments, cwd=cwd, config=config)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


def study_command(*arguments: str, cwd: Path, config: Path) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, "-m", "workflow.run", str(config), "--cores", "2", *arguments], environment_of(cwd)


def environment_of(clone: Path) -> dict[str, str]:
    """Return the environment in which a user has activated the environment of this Python."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "PYTHONPATH": str(clone),
    }


def write_clone(target: Path) -> Path:
    """Write the repository as a fresh checkout has it: no results, no caches, so no data at all.

    Only the compiled modules are there, so that they are not compiled once more; not those that are being written.
    """
    ignored = shutil.ignore_patterns(".git", ".venv", "results", ".snakemake", ".*cache", "*.pyc.*", "*.egg-info")
    shutil.copytree(ROOT, target, ignore=ignored)
    return target
