"""Snakemake as a user starts it, in a clone of this repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from workflow.study import ROOT


def run_snakemake(
    *arguments: str, cwd: Path, config: Path, timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    command, environment = snakemake_command(*arguments, cwd=cwd, config=config)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


def run_study(
    *arguments: str, cwd: Path, config: Path, timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    """Run a study as ``make run`` does: its jobs are forked from a process that has PyTorch loaded."""
    command, environment = study_command(*arguments, cwd=cwd, config=config)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


def study_command(*arguments: str, cwd: Path, config: Path) -> tuple[list[str], dict[str, str]]:
    _, environment = snakemake_command(cwd=cwd, config=config)
    return [sys.executable, "-m", "workflow.run", str(config), "--cores", "2", *arguments], environment


def snakemake_command(*arguments: str, cwd: Path, config: Path) -> tuple[list[str], dict[str, str]]:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "PYTHONPATH": str(cwd),
    }
    profile = cwd / "workflow/profiles/local"
    command = [sys.executable, "-m", "snakemake", "--configfile", str(config), "--profile", str(profile)]
    return [*command, "--cores", "2", *arguments], environment


def write_clone(target: Path) -> Path:
    """Write the repository as a fresh checkout has it: no results, no caches, so no data at all.

    Only the compiled modules are there, so that they are not compiled once more; not those that are being written.
    """
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "results", ".snakemake", ".*cache", "*.pyc.*", "*.egg-info"
    )
    shutil.copytree(ROOT, target, ignore=ignored)
    return target


def dry_runs(
    studies: Mapping[str, list[str]], cwd: Path, out: Path
) -> dict[str, subprocess.CompletedProcess[str]]:
    """Do ``snakemake -n`` with the options of each study; what it imports is imported once for all of them."""
    _, environment = snakemake_command(cwd=cwd, config=cwd)
    local = ["--profile", "workflow/profiles/local", "--cores", "2", "-n"]
    runs = {str(out / name): [*options, *local] for name, options in studies.items()}
    command = [sys.executable, str(Path(__file__).with_name("forked_snakemake.py")), json.dumps(runs)]
    subprocess.run(command, cwd=cwd, env=environment, check=True, timeout=1500)
    found = {}
    for file, arguments in runs.items():
        printed, _, code = Path(file).read_text().rstrip().rpartition("\n")
        found[Path(file).name] = subprocess.CompletedProcess(arguments, int(code), printed, "")
    return found
