"""Run by test_host_memory.py: what a loader with two workers and its processes hold once all batches are prepared."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import psutil
import torch

from filip.data.loading.config import DataConfig, Source, StreamConfig
from filip.data.loading.loader import build_loader


def held() -> int:
    """Bytes of this process and the workers, a page that several share counted once, and batches in shared memory.

    Those lie in files without a name, which nobody has mapped between a worker and this process.
    """
    me = psutil.Process()
    processes = [me, *me.children(recursive=True)]
    shared: dict[int, int] = {}
    for process in processes:
        for place in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(place).startswith("/dev/shm/"):
                    status = place.stat()
                    shared[status.st_ino] = status.st_blocks * 512
    return sum(process.memory_full_info().pss for process in processes) + sum(shared.values())


def settled() -> int:
    """``held()`` when it has not changed for five seconds: a worker may wait that long for a busy processor."""
    readings, end = [held()], time.monotonic() + 120
    while time.monotonic() < end:
        time.sleep(1)
        readings.append(held())
        last = readings[-6:]
        if len(last) == 6 and max(last) - min(last) < 1e6:
            break
    return readings[-1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, workers, batch, size = sys.argv[1], *map(int, sys.argv[2:])
    data = DataConfig(
        sources=[Source(f"{folder}/shards", f"{folder}/captions")],
        workers=workers,
        prefetch=2,
        auto_augment=False,
    )
    before = held()
    batches = iter(build_loader(StreamConfig(data, batch, size)))
    first = next(batches)
    print("RESULT", json.dumps(settled() - before), flush=True)
    os._exit(0)
