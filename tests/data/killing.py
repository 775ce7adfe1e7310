"""kill -9 of a running stage, at a moment that is another one in every run of the tests."""

import os
import random
import signal
import subprocess
import time


def kill_at_random(running: subprocess.Popen, longest: float) -> None:
    """Kill a process with its session after 0 to ``longest`` seconds; it may be over by then."""
    moment = random.SystemRandom().uniform(0, longest)
    time.sleep(moment)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    print(f"killed after {moment:.3f} of at most {longest:.3f} s")  # shown when the test fails
