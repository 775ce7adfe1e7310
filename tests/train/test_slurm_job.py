"""When a training's Slurm job asks to be started again; tests/cluster does it with a real Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from filip.train import slurm_job
from filip.train.slurm_job import requeue_job, supervise


@pytest.fixture
def requeues(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    monkeypatch.setattr(slurm_job, "wait_for_the_end", lambda code: code)
    return []


def run(folder: Path, requeues: list[bool], script: str) -> int:
    """Return the exit code of a job whose training is a line of shell."""
    return supervise(folder, ["sh", "-c", script], 3, lambda: requeues.append(True) or True)


SAVED = "mkdir -p checkpoints/step0000000%d; echo 85 > $FILIP_EXIT_CODE_FILE; exit 143"


def test_a_training_that_finishes_or_is_refused_is_not_started_again(
    tmp_path: Path, requeues: list[bool]
) -> None:
    assert run(tmp_path, requeues, "exit 0") == 0
    # srun kills the other ranks and returns the code of that
    assert run(tmp_path, requeues, "echo 2 > $FILIP_EXIT_CODE_FILE; exit 143") == 2
    assert not requeues


def test_a_training_that_saved_is_started_again_as_often_as_it_takes(
    tmp_path: Path, requeues: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for step in range(1, 6):
        assert run(tmp_path, requeues, SAVED % step) == 85
    assert len(requeues) == 5


@pytest.mark.parametrize("crash", ["exit 1", "kill -9 $$", "echo 85 > $FILIP_EXIT_CODE_FILE; exit 143"])
def test_the_third_crash_since_a_checkpoint_is_the_last(
    tmp_path: Path, requeues: list[bool], crash: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal that comes before anything was saved counts as one: it would come again and again."""
    for _ in range(2):
        run(tmp_path, requeues, crash)
    (tmp_path / "checkpoints" / "step00000009").mkdir(parents=True)  # progress: counting starts again
    for _ in range(3):
        assert run(tmp_path, requeues, crash) != 0
    assert len(requeues) == 4
    assert "crash 3 " in capsys.readouterr().err


def test_outside_of_a_slurm_job_nothing_is_requeued(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert not requeue_job()
    assert "SLURM_JOB_ID is not set" in capsys.readouterr().err
