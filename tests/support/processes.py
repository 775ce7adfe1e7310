"""Starting Python as a user does, with its output kept, and killing it at moments that nobody chose."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


class Process(subprocess.Popen[bytes]):
    """A Python in the background, in a session of its own: a test can signal it with everything that it starts."""

    def __init__(
        self,
        arguments: Sequence[str],
        variables: Mapping[str, str] | None = None,
        log: Path = Path(os.devnull),
        errors: Path | None = None,
        cwd: Path | None = None,
    ) -> None:
        with open(log, "ab") as printed, open(errors or log, "ab") as complaints:
            super().__init__(
                [sys.executable, *arguments],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=complaints,
                cwd=cwd,
                start_new_session=True,
            )

    def signal_group(self, number: signal.Signals) -> None:
        os.killpg(self.pid, number)


def run_python(
    *arguments: str, variables: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=variables, cwd=cwd, timeout=timeout, capture_output=True, text=True)


def run_well(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python to its end, as :func:`run_python` does; a code that is not 0 fails the test."""
    done = run_python(*arguments, **options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done


def kill_group(running: Process | subprocess.Popen[bytes]) -> None:
    """Kill a process with everything that it has started; it may be over."""
    with suppress(ProcessLookupError):  # it has ended and been waited for
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def kill_at_random(running: Process | subprocess.Popen[bytes], longest: float) -> None:
    """Kill a process with its session after 0 to ``longest`` seconds; it may be over by then."""
    moment = random.SystemRandom().uniform(0, longest)
    time.sleep(moment)
    kill_group(running)
    print(f"killed after {moment:.3f} of at most {longest:.3f} s")  # shown when the test fails
