"""Peak memory of one contender's step, in its own process: python -m bench.interaction_memory NAME IMAGES PATCHES

Prints megabytes of resident memory beyond what was resident before the step, i.e. beyond the inputs and the loaded
libraries; the gradients are included. The kernel's high-water mark (VmHWM) is reset before the step, after the
inputs have been built and a small step has started threads and libraries. It counts the memory of every allocator and
thread, PyTorch's or not.
"""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# Blocks of 64 KB and more are returned to the system when freed, so that no growth hides in memory freed earlier.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_WAIT_POLICY": "passive"}


def peak_megabytes(name: str, images: int, patches: int) -> float:
    """Measure ``name`` in a fresh process."""
    command = [sys.executable, "-m", "bench.interaction_memory", name, str(images), str(patches)]
    output = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT}, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return float(output.split()[-1])


def resident(field: str) -> float:
    """Return the megabytes of a field of /proc/self/status, VmRSS or VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status: this measurement needs Linux")


def growth(step: Callable[[], object]) -> float:
    """Return the megabytes of resident memory that a step needs at its peak, above what was resident before it."""
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    result = step()
    peak = resident("VmHWM") - before
    del result  # kept until now: a step's result belongs to its peak
    return peak


def main(name: str, images: int, patches: int) -> None:
    from bench.interaction_contenders import CONTENDERS
    from bench.interaction_problem import random_problem

    CONTENDERS[name](random_problem(4, 5))()
    print(growth(CONTENDERS[name](random_problem(images, patches))))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
