"""Measure how the native kernels scale with threads: python -m bench.interaction_threads [threads=1,2,4]

Wall time of a forward and backward pass, medians of interleaved rounds, so that other load on the machine strikes all
alike: the paper's slice, 16 images against 8,192 captions, and a batch of 256 pairs. PyTorch's float32 product of the
same tokens is next to it. More threads than cores say nothing about time; whether there is work for them all is counted
instead: threads that use at least half of an equal share of the processor time.
"""

import os
import statistics
import sys
import time
from pathlib import Path

import torch

from bench.interaction_contenders import product
from bench.interaction_problem import Step, random_problem
from bench.interaction_slice import filip_loss
from late_interaction import native

SHAPES = {"16 images, 8,192 captions": (16, 8192), "256 pairs": (256, 256)}


def main(threads: list[int], rounds: int = 9) -> None:
    if reason := native.unavailable_reason():
        sys.exit(f"nothing to measure: {reason}")
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, native kernels: {native.isas()[0]}")
    for name, (images, texts) in SHAPES.items():
        problem = random_problem(images, 49, texts=texts)
        for contender, step in (("native", filip_loss(problem)), ("product", product(problem))):
            milliseconds = measure(step, threads, rounds)
            shown = ", ".join(
                f"{count}: {taken:.0f} ms ({milliseconds[threads[0]] / taken:.2f}x)"
                for count, taken in milliseconds.items()
            )
            print(f"{name:26} {contender:8} threads {shown}", flush=True)
            if contender == "native":
                busy = ", ".join(f"{busy_threads(step, count)} of {count}" for count in (4, 16, 32))
                print(f"{name:26} busy threads: {busy}", flush=True)


def busy_threads(step: Step, count: int) -> int:
    """Count the threads, of ``count``, that do at least half of an equal share of ``step``."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    step()
    started = nanoseconds_by_thread()
    for _ in range(3):
        step()
    used = [taken - started.get(thread, 0) for thread, taken in nanoseconds_by_thread().items()]
    torch.set_num_threads(before)
    return sum(taken >= sum(used) / count / 2 for taken in used)


def nanoseconds_by_thread() -> dict[str, int]:
    """Return the processor time of every thread of this process."""
    folder = Path("/proc/self/task")
    return {task.name: int((task / "schedstat").read_text().split()[0]) for task in folder.iterdir()}


def measure(step: Step, threads: list[int], rounds: int) -> dict[int, float]:
    """Measure median wall milliseconds by number of threads."""
    before = torch.get_num_threads()
    seconds: dict[int, list[float]] = {count: [] for count in threads}
    for current in range(rounds + 1):  # the first warms up
        for count in threads:
            torch.set_num_threads(count)
            started = time.perf_counter()
            step()
            if current > 0:
                seconds[count].append(time.perf_counter() - started)
    torch.set_num_threads(before)
    return {count: 1e3 * statistics.median(taken) for count, taken in seconds.items()}


if __name__ == "__main__":
    chosen = next((word.removeprefix("threads=") for word in sys.argv[1:] if word.startswith("threads=")), "1,2")
    main([int(count) for count in chosen.split(",")])
