"""kill -9 of a running stage, at a moment that is another one in every run of the tests."""

import os
import random
import signal
import subprocess
import time
from contextlib import suppress

from tests.support.processes import Process


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
