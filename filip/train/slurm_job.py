"""A training inside a Slurm job: what becomes of the job when the training ends early.

    python -m filip.train.slurm_job run_dir=DIR -- srun --nodes=16 ... python -m filip.train run_dir=DIR ...

What srun returns says little: when one task fails it kills the others, and its own exit code is then that of a signal.
The first rank therefore leaves its exit code in ``$FILIP_EXIT_CODE_FILE``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.files import write_json
from filip.train.launcher_env import EXIT_CODE_FILE, STOPPED_BY_SIGNAL, USERS_MISTAKE

CRASHES = "crashes.json"


def supervise(run_dir: Path, command: list[str], crashes: int, requeue: Callable[[], bool]) -> int:
    """Run ``command`` and return its exit code, or ask for another start of the job where that helps.

    - 85, saved because of a signal (pre-emption, the time limit): ``requeue``, if there is a new checkpoint.
    - 2, a user's mistake, or numbers that are no longer finite: a person has to decide.
    - anything else is a crash (a dead node, GPU or process): ``requeue``, unless it was the ``crashes``-th one since
      the newest checkpoint, which then is not an accident.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    place = (run_dir / "exit_code").resolve()
    place.unlink(missing_ok=True)
    before = _newest_checkpoint(run_dir)
    returned = subprocess.run(command, env={**os.environ, EXIT_CODE_FILE: str(place)}).returncode
    if returned == 0:
        (run_dir / CRASHES).unlink(missing_ok=True)
        return 0
    reported = int(place.read_text()) if place.is_file() else None
    if reported == USERS_MISTAKE:
        _say("the training was refused or its numbers are no longer finite, see above: not started again")
        return USERS_MISTAKE
    newest = _newest_checkpoint(run_dir)
    if reported == STOPPED_BY_SIGNAL and newest != before:
        _say("the training has saved its state because of a signal")
        return STOPPED_BY_SIGNAL if not requeue() else wait_for_the_end(STOPPED_BY_SIGNAL)
    code = reported or returned
    times = _count_crash(run_dir / CRASHES, newest)
    if times >= crashes:
        _say(
            f"crash {times} (exit code {code}) since {newest}: not started again; see the log of the training"
        )
        return code
    _say(f"crash {times} of at most {crashes} (exit code {code}) since {newest}")
    return code if not requeue() else wait_for_the_end(code)


def _newest_checkpoint(run_dir: Path) -> str:
    return max((path.name for path in run_dir.glob("checkpoints/step*")), default="the start")


def _count_crash(file: Path, newest: str) -> int:
    """Count the crashes since the checkpoint ``newest``, this one included."""
    before = json.loads(file.read_text()) if file.is_file() else {}
    times = 1 + (before["times"] if before.get("checkpoint") == newest else 0)
    write_json(file, {"checkpoint": newest, "times": times})
    return int(times)


def requeue_job() -> bool:
    """Put this Slurm job back into the queue, to start again from its first line. False if it was cancelled."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        _say("SLURM_JOB_ID is not set: this is no Slurm job, nothing starts it again")
        return False
    state = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True)
    if state.stdout.strip() != "RUNNING":
        _say(f"job {job} is {state.stdout.strip() or 'unknown to squeue'}: not started again")
        return False
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        _say(f"Slurm does not start job {job} again: {done.stderr.strip()}")
        return False
    _say(f"job {job} goes back into the queue and continues from the newest checkpoint")
    return True


def wait_for_the_end(code: int, seconds: float = 120) -> int:
    """Wait for Slurm to end this process: until then the job must not look finished. Return ``code`` if it does not."""
    time.sleep(seconds)
    return code


def _say(sentence: str) -> None:
    print(f"slurm job: {sentence}", file=sys.stderr, flush=True)


@dataclass
class SlurmJob:
    run_dir: str = option(MISSING, "the training's run_dir")
    crashes: int = option(3, "give up at that many crashes since the newest checkpoint", at_least=1)


def main(config: SlurmJob, command: list[str]) -> None:
    """Run a training inside a Slurm job, and requeue the job where that helps: ``run_dir=DIR -- srun ...``."""
    if not command:
        raise UserError("no command; give run_dir=DIR -- srun ... python -m filip.train ...")
    sys.exit(supervise(Path(config.run_dir), command, config.crashes, requeue_job))


if __name__ == "__main__":
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    run_command(lambda config: main(config, sys.argv[split + 1 :]), SlurmJob, argv=sys.argv[1:split])
