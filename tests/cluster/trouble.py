"""Trouble for one rank of the training ``shaken``: a desk's folder has this file as sitecustomize.py.

Python runs it at every start. While a file ``trouble`` beside it names the rank, every read of a shard fails there.
"""

import errno
import os
from pathlib import Path

TROUBLE = Path(__file__).with_name("trouble")
COMMAND = Path("/proc/self/cmdline").read_bytes().split(b"\0")
if COMMAND[1:3] == [b"-m", b"filip.train"] and b"run=shaken" in COMMAND:  # a rank, and not the job that starts ranks
    os.environ["STRUCK_RANK"] = os.environ.get("SLURM_PROCID", "")  # for the loader's processes too


def failing(call):
    def wrapped(place, *more, **named):
        if TROUBLE.is_file() and TROUBLE.read_text() == os.environ.get("STRUCK_RANK"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), place)
        return call(place, *more, **named)

    return wrapped


os.pread = failing(os.pread)
