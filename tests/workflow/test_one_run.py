"""One run at a time, and nothing of a killed one that could harm the next."""

import os
import subprocess
import sys
from pathlib import Path

from workflow.run import MARK, processes
from workflow.study import ROOT

TAKE = (
    "import sys; from workflow import run; study = sys.argv[1]\n"
    "try: run.become_the_only_run(study, f'/results/{study}')\n"
    "except run.UserError as error: print(error, flush=True); sys.exit(2)\n"
    "print('works', flush=True); input()"
)


def start(folder: Path, study: str) -> tuple[subprocess.Popen[str], str]:
    """Start a process that is at work on a study in a checkout; return what it says first, too."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command, pipe = [sys.executable, "-c", TAKE, study], subprocess.PIPE
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline()


def stale_locks(folder: Path) -> Path:
    """Write what a killed Snakemake leaves."""
    locks = folder / ".snakemake/locks"
    locks.mkdir(parents=True)
    (locks / "0.output.lock").write_text("results/demo/report.html\n")
    return locks


def test_the_locks_of_a_killed_run_are_removed_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    locks = stale_locks(tmp_path)
    first, said = start(tmp_path, "demo")
    assert said == "works\n" and not locks.exists()
    stale_locks(tmp_path)  # these are its own
    second, said = start(tmp_path, "demo")
    assert f"the study demo is being run already, by process {first.pid}" in said and second.wait() == 2
    other, said = start(tmp_path, "demo_ablation")  # another study, at the same time
    assert said == "works\n" and locks.exists()
    first.kill()
    first.wait()
    third, said = start(tmp_path, "demo")
    assert said == "works\n" and locks.exists()  # the other one may own them
    for process in (third, other):
        process.kill()
        process.wait()


def test_processes_that_a_killed_run_has_left_are_named(tmp_path: Path) -> None:
    environment = {**os.environ, MARK: "/results/demo"}
    left = subprocess.Popen(["sleep", "60"], env=environment)
    try:
        assert processes("/results/demo") == [left.pid] and processes("/results/other") == []
        process, said = start(tmp_path, "demo")
        assert f"end them by kill {left.pid}" in said and process.wait() == 2
    finally:
        left.kill()
        left.wait()
    process, said = start(tmp_path, "demo")
    assert said == "works\n"
    process.kill()
    process.wait()
