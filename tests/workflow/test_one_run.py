"""One run at a time, and nothing of a killed one that could harm the next."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.snakemake_runs import write_clone
from workflow import one_run
from workflow.study import ROOT

TAKE = "from workflow import one_run; import sys, time; one_run.take(sys.argv[1]); print(1, flush=True); time.sleep(60)"


def holder(folder: Path, study: str) -> subprocess.Popen[str]:
    """Start a process that is at work on a study in a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TAKE, study]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def stale_locks(folder: Path) -> Path:
    """Write what a killed Snakemake leaves."""
    locks = folder / ".snakemake/locks"
    locks.mkdir(parents=True)
    (locks / "0.output.lock").write_text("results/demo/report.html\n")
    return locks


def test_the_locks_of_a_killed_run_are_removed_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    locks = stale_locks(tmp_path)
    first = holder(tmp_path, "demo")
    assert not locks.exists() and first.poll() is None
    stale_locks(tmp_path)  # these are its own
    second = holder(tmp_path, "demo")
    assert second.wait(10) != 0 and second.stderr is not None
    said = second.stderr.read()
    assert f"the study demo is being run already, by process {first.pid}" in said
    other = holder(tmp_path, "demo_ablation")  # another study, at the same time
    assert locks.exists() and other.poll() is None
    first.kill()
    first.wait()
    third = holder(tmp_path, "demo")
    assert third.poll() is None and locks.exists()  # the other one may own them
    for process in (third, other):
        process.kill()
        process.wait()


def test_a_process_that_is_gone_when_it_is_to_be_ended_is_no_fault() -> None:
    process = subprocess.Popen(["true"])
    gone = psutil.Process(process.pid)
    process.wait()
    results = [[gone]]
    assert one_run.end(lambda: results.pop() if results else [], patience=1) == 0


def test_processes_of_a_run_are_found_by_mark_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(one_run.MARK, "")
    one_run.mark(tmp_path / "results/demo")
    willing = "import time; print(1, flush=True); time.sleep(60)"
    stubborn = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {willing}"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for code in (stubborn, willing)]
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    one_run.mark(tmp_path / "results/other")
    bystander = subprocess.Popen([sys.executable, "-c", willing], stdout=subprocess.PIPE)

    def find() -> list:
        return one_run.processes(tmp_path / "results/demo")

    assert {process.pid for process in find()} == {process.pid for process in started}
    before = time.monotonic()
    assert one_run.end(find, patience=1.0) == 2
    assert time.monotonic() - before >= 1.0  # the stubborn one was given its time
    assert [process.wait(5) for process in started] == [-signal.SIGKILL, -signal.SIGTERM]
    assert bystander.poll() is None and find() == []
    bystander.kill()
    bystander.wait()


@pytest.mark.slow
def test_a_run_that_is_stopped_while_snakemake_loads_ends_in_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "workflow.run", "demo", "--cores", "1", "--dry-run"]
    with subprocess.Popen(command, cwd=write_clone(tmp_path / "filip"), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "loading Snakemake" not in process.stderr.readline():
            pass
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert "stopped; the same command continues" in said and "Traceback" not in said
    assert process.returncode == 128 + signal.SIGTERM
