"""A training's start: lock, log, evidence, another start. tests/cluster does it with a real Slurm."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from filip.common.errors import UserError
from filip.runs import lock
from filip.train import supervise as supervising
from filip.train.launcher_env import LOST_CONTACT
from filip.train.supervise import Attempt, attempts, first_error, last_failure, supervise


@pytest.fixture
def requeues(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    monkeypatch.setattr(supervising, "wait_for_the_end", lambda code: code)
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_LOOKS", 0.01)
    return []


def run(folder: Path, requeues: list[bool], script: str, patience: float = 0) -> int:
    """Return the exit code of a job whose training is a line of shell."""
    attempt = Attempt.begin(folder, folder / "rule.log")
    return supervise(attempt, ["sh", "-c", script], 3, patience, lambda: requeues.append(True))


def test_a_signal_after_a_requeue_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that lived on would end after the next start, and Snakemake then deletes what that one has made."""
    monkeypatch.setattr(supervising, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(supervising.wait_for_the_end, "__defaults__", (1e9,))  # without the signal the test times out
    before = signal.signal(signal.SIGUSR2, supervising.note_signal)

    def requeue() -> None:
        assert not supervising._signals, "the signal before the request is no answer to it"
        subprocess.Popen(["sh", "-c", f"sleep 0.2; kill -USR2 {os.getpid()}"])

    try:
        os.kill(os.getpid(), signal.SIGUSR2)
        attempt = Attempt.begin(tmp_path)
        assert supervise(attempt, ["sh", "-c", "exit 9"], 3, 0, requeue) == 9
    finally:
        signal.signal(signal.SIGUSR2, before)


SAVED = "mkdir -p checkpoints/step0000000%d; echo 85 > $FILIP_EXIT_CODE_FILE; exit 143"


def test_a_training_that_finishes_or_is_refused_is_not_started_again(tmp_path: Path, requeues: list[bool]) -> None:
    assert run(tmp_path, requeues, "exit 0") == 0
    assert last_failure(tmp_path) is None
    # srun kills the other ranks and returns the code of that
    refused = "echo 'error: the list is empty'; echo 2 > $FILIP_EXIT_CODE_FILE; exit 143"
    assert run(tmp_path, requeues, refused) == 2
    assert "error: the list is empty" in str(last_failure(tmp_path))
    assert not requeues


def test_numbers_that_stay_not_finite_are_tried_once_more_from_the_last_checkpoint(
    tmp_path: Path, requeues: list[bool]
) -> None:
    for step in (3, 6):  # the second stretch comes after another checkpoint
        (tmp_path / f"checkpoints/step0000000{step}").mkdir(parents=True)
        for _ in range(2):
            assert run(tmp_path, requeues, "echo 70 > $FILIP_EXIT_CODE_FILE; exit 143") == 70
    assert len(requeues) == 2
    assert "non-finite 2 times since step00000006" in (tmp_path / "rule.log").read_text()


def test_a_saved_training_starts_again(tmp_path: Path, requeues: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for step in range(1, 6):
        assert run(tmp_path, requeues, SAVED % step) == 85
    assert len(requeues) == 5


@pytest.mark.parametrize("crash", ["exit 1", "kill -9 $$"])
def test_the_third_crash_since_a_checkpoint_is_the_last(tmp_path: Path, requeues: list[bool], crash: str) -> None:
    for _ in range(2):
        run(tmp_path, requeues, crash)
    (tmp_path / "checkpoints" / "step00000009").mkdir(parents=True)  # progress: counting starts again
    for _ in range(3):
        assert run(tmp_path, requeues, crash) != 0
    assert len(requeues) == 4
    assert "crashed 3 times since step00000009" in (tmp_path / "rule.log").read_text()


def test_every_start_keeps_its_output_and_its_first_error(tmp_path: Path, requeues: list[bool]) -> None:
    run(tmp_path, requeues, "echo step 1; echo 'error: rank 3 on node7: a' >&2; echo late; exit 1")
    run(tmp_path, requeues, "echo resumed; kill -9 $$")
    assert "resumed" in (tmp_path / "rule.log").read_text()  # a link to the newest
    first = (tmp_path / "logs/001.log").read_text()
    assert "step 1" in first and first.splitlines()[3].endswith("failed first with: error: rank 3 on node7: a")
    ends = [line for line in attempts(tmp_path) if "outcome" in line]
    assert [line["error"] for line in ends] == ["error: rank 3 on node7: a", "resumed"]
    begun = attempts(tmp_path)[0]
    assert begun["host"] == os.uname().nodename and begun["log"] == "logs/001.log"
    assert str(last_failure(tmp_path)).startswith("start 2 on ")


def test_the_first_error_is_the_first_rank_s_that_has_not_just_lost_contact() -> None:
    lost = f"error: rank 0 on n {LOST_CONTACT}"
    ended = "srun: error: n1: task 1: Exited with exit code 74"
    assert first_error(f"{lost}\n{ended}\nerror: a\nerror: b\nlate") == "error: a"
    assert first_error(f"{lost}\n{ended}\n\ntraining job: waits") == ended
    assert first_error("") == ""


RELEASE = """
import os, pathlib, sys, time
logs = pathlib.Path(sys.argv[1])
while sum("waiting for" in log.read_text() for log in logs.glob("*.log")) < 1:
    time.sleep(0.01)
os.kill(int(sys.argv[2]), 9)
"""


def test_a_lock_that_is_still_held_is_waited_for(tmp_path: Path, requeues: list[bool]) -> None:
    """As that of a dead node, which a network file system frees after its lease."""
    with open(tmp_path / "lock", "w+") as other:
        other.write("start 1, host node3, process 77\n")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[other.fileno()])
    try:
        assert run(tmp_path, requeues, "exit 0") == supervising.LOCKED and len(requeues) == 1
        said = (tmp_path / "logs/001.log").read_text()
        assert "by start 1, host node3, process 77" in said and "another start holds" in said
        later = subprocess.Popen([sys.executable, "-c", RELEASE, str(tmp_path / "logs"), str(holder.pid)])
        assert run(tmp_path, requeues, "echo works", patience=1) == 0 and later.wait() == 0
    finally:
        holder.kill()
        holder.wait()
    assert "works" in (tmp_path / "rule.log").read_text()
    assert (tmp_path / "lock").read_text().startswith("start 2, host ")


def test_a_training_without_a_job_locks_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "MINUTES_AFTER_A_KILL", 0)
    said: list[str] = []
    with lock.holding(tmp_path / "run", said.append):
        with pytest.raises(UserError, match=r"another training is at work in .*run: wait"):
            lock.holding(tmp_path / "run", said.append).__enter__()
        assert f"by a training, host {os.uname().nodename}, process {os.getpid()}" in said[-1]
    with lock.holding(tmp_path / "run", said.append):
        pass


def test_children_hold_the_lock_when_the_job_s_own_process_is_killed(tmp_path: Path, requeues: list[bool]) -> None:
    command = [sys.executable, "-m", "filip.train.supervise", f"run_dir={tmp_path}", "--"]
    first = subprocess.Popen([*command, "sh", "-c", f"touch {tmp_path}/up; exec sleep 60"])
    while not (tmp_path / "up").exists():
        assert first.poll() is None
    first.kill()
    first.wait()
    try:
        assert run(tmp_path, requeues, "exit 0") == supervising.LOCKED
    finally:
        with open(f"/proc/{_of_the_lock(tmp_path)}/comm") as name:
            assert name.read() == "sleep\n"
        os.kill(_of_the_lock(tmp_path), 9)


def _of_the_lock(folder: Path) -> int:
    for place in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if place.resolve() == (folder / "lock").resolve():
                return int(place.parts[2])
        except OSError:
            continue
    raise AssertionError("nobody has the lock open")


def test_a_disk_without_locks_is_told(tmp_path: Path, requeues: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)  # as Lustre mounted without -o flock
    assert run(tmp_path, requeues, "exit 0") == 0
    assert "has no locks (flock: Function not implemented)" in (tmp_path / "rule.log").read_text()


def test_lines_that_a_power_cut_has_torn_are_left_out(tmp_path: Path) -> None:
    (tmp_path / supervising.ATTEMPTS).write_text(json.dumps({"attempt": 1}) + '\n{"attempt": 2, "ti')
    assert [line["attempt"] for line in attempts(tmp_path)] == [1]


def test_a_signal_during_the_start_up_ends_a_training_at_once(tmp_path: Path) -> None:
    """Without a handler it would look like a crash: no rank had exited with 85."""
    code = """\
import os, runpy, signal, sys
class Importing:
    def find_spec(self, name, *_):
        if name == "filip.cli.command":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Importing())
runpy.run_module("filip.train", run_name="__main__")
"""
    environment = {**os.environ, supervising.EXIT_CODE_FILE: str(tmp_path / "code")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, (tmp_path / "code").read_text()) == (85, "85")
    assert done.stderr == "SIGTERM: stopped before the first step\n"
