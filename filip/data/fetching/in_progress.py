"""Note which image of a shard is being decoded, so that an image that kills its process is identified and given up.

Without it one such image (there is one among millions: a decoder crashes, or memory runs out) stops its shard each
time, and with it the whole download.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

SECONDS_ALONE = 600.0  # time in which a suspected image has to be decoded
CRASHED = "crashed: the process that decodes it dies (out of memory, or a fault of the decoder)"


class InProgress:
    """A file that holds the number of the image being decoded: one line for each process that worked on the shard.

    A number that a killed process left is not proof: the whole run may have been killed. That image is decoded in a
    separate process, and is given up only if that process dies as well.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.suspects = path, suspects(path)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT)
        self._end = os.lseek(self._file, 0, os.SEEK_END)

    def survives(self, number: int, decode: Callable[..., Any], *arguments: Any) -> bool:
        """Note that image ``number`` comes next; False if ``decode(*arguments)`` would kill this process."""
        if number not in self.suspects:
            os.pwrite(self._file, f"{number:<11}\n".encode(), self._end)
            return True
        alone = get_context("spawn").Process(target=decode, args=arguments)
        alone.start()
        alone.join(SECONDS_ALONE)
        exit_code = alone.exitcode
        alone.kill()
        return exit_code == 0

    def close(self, complete: bool) -> None:
        """End the work on the shard; ``complete``: the note of what was in progress is no longer needed."""
        os.close(self._file)
        if complete:
            self.path.unlink(missing_ok=True)  # a worker that a cluster presumed lost may do the same shard


def suspects(path: Path) -> set[int]:
    """Return the numbers of the images that were being decoded when a process died; none if no such file exists."""
    return {int(number) for number in path.read_text().split()} if path.exists() else set()
