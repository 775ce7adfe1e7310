"""Supervise one start of a training: its lock, its log, and the next start when it ends early.

    python -m filip.train.supervise run_dir=DIR -- deepspeed ... --module filip.train run_dir=DIR ...
    python -m filip.train.supervise run_dir=DIR requeue=true -- srun --nodes=16 ... python -m filip.train …

Every start has its own log in ``DIR/logs`` and two lines in ``DIR/attempts.jsonl``, so that the output of a start
outlives the next one. The exit code of srun helps little: when one task fails it kills the others, and its own exit
code is then a signal's. The first rank therefore leaves its exit code in ``$FILIP_EXIT_CODE_FILE``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.runs.lock import SECONDS_BETWEEN_LOOKS, hold, this_process
from filip.train.launcher_env import EXIT_CODE_FILE, LOST_CONTACT, NOT_FINITE, STOPPED_BY_SIGNAL, USERS_MISTAKE

ATTEMPTS = "attempts.jsonl"
LOCKED = 75  # exit code: another start holds the run's folder


@dataclass
class Attempt:
    """A start of the training in ``run_dir``: number, log, and its lines in ``attempts.jsonl``."""

    run_dir: Path
    number: int
    log: IO[str]
    echo: bool  # sentences go to the standard error, too

    @classmethod
    def begin(cls, run_dir: Path, link: Path | None = None) -> Attempt:
        """Open the log of the next start, to which the training appends, too; ``link`` becomes a link to it."""
        logs = run_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.stem) for path in logs.glob("[0-9]*.log")), default=0)
        while True:
            try:
                (logs / f"{number:03d}.log").touch(exist_ok=False)
                break
            except FileExistsError:  # another start, at the same moment
                number += 1
        log = open(logs / f"{number:03d}.log", "a", encoding="utf-8")  # noqa: SIM115
        if link is not None:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(log.name, link.parent))
        attempt = cls(run_dir, number, log, link is None)
        attempt.record(**this_process(), log=f"logs/{number:03d}.log")
        return attempt

    def record(self, **values: Any) -> None:
        """Append a line about this start; on a full disk it is lost, and the training is not."""
        line = {"attempt": self.number, "time": datetime.now().astimezone().isoformat(timespec="seconds")}
        with suppress(OSError), open(self.run_dir / ATTEMPTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line | values) + "\n")

    def say(self, sentence: str) -> None:
        with suppress(OSError):
            print(f"training job: {sentence}", file=self.log, flush=True)
        if self.echo:
            print(f"training job: {sentence}", file=sys.stderr, flush=True)

    def ends(self, code: int, outcome: str, newest: str, why: str = "") -> int:
        """Record how it ended, repeat the first error as the last line, and return ``code``."""
        failed = outcome not in ("finished", "saved")
        output = Path(self.log.name).read_text(encoding="utf-8", errors="replace")
        error = {"error": why or first_error(output)} if failed else {}
        self.record(code=code, outcome=outcome, checkpoint=newest, **error)
        if failed:
            self.say(f"start {self.number} on {socket.gethostname()} failed first with: {error['error']}")
        return code


def first_error(output: str) -> str:
    """Return the first sentence of a rank about more than lost contact with the others, or else the last line."""
    lines = [line.strip() for line in output.splitlines() if not line.startswith("training job: ")]
    errors = [line for line in lines if line.startswith("error: ") and LOST_CONTACT not in line]
    return next(iter(errors), "") or next(filter(None, reversed(lines)), "")


def last_failure(run_dir: Path) -> str | None:
    """Return a sentence about how the newest start of a run failed; None if it did not, or is still at work."""
    starts = attempts(run_dir)
    if not starts or starts[-1].get("outcome") in (None, "finished", "saved"):
        return None
    begun = next(line for line in starts if line["attempt"] == starts[-1]["attempt"])
    return f"start {begun['attempt']} on {begun['host']}: {starts[-1]['error']} (see {run_dir / begun['log']})"


def attempts(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of ``attempts.jsonl``: one for the begin of each start, and one for its end if it came to it."""
    file = run_dir / ATTEMPTS
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def supervise(
    attempt: Attempt, command: Sequence[str], crashes: int, patience: float, requeue: Callable[[], str | None]
) -> int:
    """Run ``command`` and return its exit code, or ask for another start of the job where that helps.

    - stopped by a signal (pre-emption, the time limit), which ranks answer with 85 and a checkpoint: ``requeue``.
    - 2, a user's mistake: a person has to decide.
    - 70, numbers that stayed not finite: ``requeue`` once, since a device may have been at fault.
    - anything else is a crash (a dead node, GPU or process; 74: a disk that failed in a step; a signal before there was
      anything to save): ``requeue``, unless it was the ``crashes``-th one since the newest checkpoint.

    ``requeue`` returns why it did not, or None.
    """
    run_dir, why = attempt.run_dir, ""
    before, place = newest_checkpoint(run_dir), (run_dir / "exit_code").resolve()
    lock = hold(run_dir / "lock", f"start {attempt.number}", attempt.say, patience)
    if lock is None:
        code, outcome, limit, why = LOCKED, "locked", crashes, f"another start holds {run_dir}/lock"
    else:
        place.unlink(missing_ok=True)
        environment = {**os.environ, EXIT_CODE_FILE: str(place)}
        try:
            out = attempt.log
            returned = subprocess.Popen(command, env=environment, stdout=out, stderr=out, pass_fds=[lock]).wait()
        except OSError as error:
            raise UserError(f"cannot start {command[0]}: {error.strerror}") from error
        finally:
            os.close(lock)  # processes that the training left behind still hold it
        reported = int(place.read_text()) if place.is_file() else None
        code, outcome, limit = reported or returned, "crashed", crashes
        if code == 0:
            return attempt.ends(0, "finished", newest_checkpoint(run_dir))
        if reported == USERS_MISTAKE:
            attempt.say("the training was refused: not started again")
            return attempt.ends(USERS_MISTAKE, "refused", newest_checkpoint(run_dir))
        if reported == NOT_FINITE:
            outcome, limit = "non-finite", 2
        elif reported == STOPPED_BY_SIGNAL and newest_checkpoint(run_dir) != before:
            outcome = "saved"
    _signals.clear()  # what comes after the request is its answer
    newest = newest_checkpoint(run_dir)
    ends = [line for line in attempts(run_dir) if "outcome" in line]
    times = 1 + sum(line["outcome"] == outcome and line["checkpoint"] == newest for line in ends)
    attempt.ends(code, outcome, newest, why)
    count = f"{outcome} {times} time{'s' * (times > 1)} since {newest} (exit code {code})"
    if times >= limit:
        why = f"{limit} times cannot be an accident"
    elif (refused := requeue()) is not None:
        why = refused
    else:
        attempt.say(f"{count}: the job goes back into the queue and continues from there")
        return wait_for_the_end(code)
    attempt.say(f"{count}, not started again: {why}")
    return code


def newest_checkpoint(run_dir: Path) -> str:
    return max((path.name for path in run_dir.glob("checkpoints/step*")), default="the start")


def requeue_job() -> str | None:
    """Put this Slurm job back into the queue, to start again from its first line; return why not, or None."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return "SLURM_JOB_ID is not set, so no scheduler starts it again"
    state = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], capture_output=True, text=True)
    if state.stdout.strip() != "RUNNING":
        return f"job {job} is {state.stdout.strip() or 'unknown to squeue'}"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    return f"Slurm refuses to requeue job {job}: {done.stderr.strip()}" if done.returncode else None


_signals: list[int] = []


def note_signal(number: int, _: object = None) -> None:
    """Handle a signal that is meant for the ranks, which get it too: go on, to hear their answer."""
    _signals.append(number)


def wait_for_the_end(code: int, seconds: float = 120) -> int:
    """Wait for Slurm to end this process: until then the job must not look finished. Return ``code`` if it does not.

    Slurm first sends a signal. Where it then loses sight of a process without living parents (any ``ProctrackType``
    but cgroup), nothing else comes. To live on would be harmful: a Snakemake that is still there deletes the outputs of
    its failed job, which by then may be the next start's.
    """
    deadline = time.monotonic() + seconds
    while not _signals and time.monotonic() < deadline:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return code


@dataclass
class Job:
    run_dir: str = option(MISSING, "the training's run_dir")
    log: str | None = option(None, "a file that becomes a link to the log of this start, in run_dir/logs")
    requeue: bool = option(False, "inside a Slurm job: put it back into the queue where that helps")
    crashes: int = option(3, "give up at that many crashes since the newest checkpoint", at_least=1)
    patience_minutes: float = option(15, "wait so long for a start that still holds the folder", at_least=0)


def main(config: Job, command: list[str]) -> None:
    """Start a training once, with lock and log; with requeue=true in a Slurm job: ``run_dir=DIR -- srun ...``."""
    if not command:
        raise UserError("no command; give run_dir=DIR -- srun ... python -m filip.train ...")
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, note_signal)
    attempt = Attempt.begin(Path(config.run_dir), Path(config.log) if config.log else None)
    requeue = requeue_job if config.requeue else lambda: "the same command continues"
    sys.exit(supervise(attempt, command, config.crashes, config.patience_minutes, requeue))


if __name__ == "__main__":
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    run_command(lambda config: main(config, sys.argv[split + 1 :]), Job, argv=sys.argv[1:split])
