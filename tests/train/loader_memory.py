"""Run by test_plan.py: what a loader and its workers hold once all batches are prepared."""

import contextlib
import gc
import json
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from filip.data.loading.config import DataConfig, Source, StreamConfig
from filip.data.loading.loader import build_loader


def held() -> int:
    """Return the bytes that this process and the workers have written to, a page that several share counted once, and
    batches.

    Pages of files are left out: libraries, which all processes of the machine share that have loaded them, so that a
    process's part depends on what else is running. Batches are in files without a name in shared memory, which
    nobody has mapped between a worker and this process.
    """
    me = psutil.Process()
    written, batches = 0, {}
    for process in (me, *me.children(recursive=True)):
        parts = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        written += sum(int(line.split()[1]) * 1024 for line in parts if line.startswith("Pss_Anon:"))
        for place in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(place).startswith("/dev/shm/"):
                    status = place.stat()
                    batches[status.st_ino] = status.st_blocks * 512
    return written + sum(batches.values())


def settled() -> int:
    """Return ``held()`` when it has not changed for five seconds: a worker may wait that long for a busy processor."""
    readings, end = [held()], time.monotonic() + 120
    while time.monotonic() < end:
        time.sleep(1)
        readings.append(held())
        last = readings[-6:]
        if len(last) == 6 and max(last) - min(last) < 1e6:
            break
    return readings[-1]


class Collecting:
    """A transform that collects garbage, as a process does at times that nobody can foresee."""

    def __init__(self, transform) -> None:
        self.transform, self.image_size = transform, transform.image_size

    def pixels(self, data: bytes, rng: random.Random) -> np.ndarray:
        gc.collect()
        return self.transform.pixels(data, rng)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, workers, batch, size = sys.argv[1], *map(int, sys.argv[2:])
    data = DataConfig(sources=[Source(f"{folder}/shards", f"{folder}/captions")], workers=workers, auto_augment=0)
    before = held()
    loader = build_loader(StreamConfig(data, batch, size))
    loader.stream.transform = Collecting(loader.stream.transform)
    batches = iter(loader)
    first = next(batches)
    gc.collect()
    print("RESULT", json.dumps(settled() - before), flush=True)
    os._exit(0)
