"""Trouble for one rank of the training ``shaken``: a desk's folder has this file as sitecustomize.py.

Python runs it at every start. The file ``trouble`` beside it names a kind and a rank; SIGUSR2 makes weights NaN.
"""

import errno
import os
import signal
from pathlib import Path

TROUBLE = Path(__file__).with_name("trouble")
COMMAND = Path("/proc/self/cmdline").read_bytes().split(b"\0")
if COMMAND[1:3] == [b"-m", b"filip.train"] and b"run=shaken" in COMMAND:  # a rank, and not the job that starts ranks
    os.environ["STRUCK_RANK"] = os.environ.get("SLURM_PROCID", "")  # for the loader's processes too


def meets(kind):
    return TROUBLE.is_file() and TROUBLE.read_text() == f"{kind} {os.environ.get('STRUCK_RANK')}"


def failing(call, kind, number):
    def wrapped(place, *more, **named):
        if meets(kind) and (isinstance(place, int) or str(place).endswith(".tar")):
            raise OSError(number, os.strerror(number), place)
        return call(place, *more, **named)

    return wrapped


os.pread = failing(os.pread, "eio", errno.EIO)
os.open = failing(os.open, "lost_shard", errno.ENOENT)
if meets("no_such_host"):
    os.environ["MASTER_ADDR"] = "no-such-host"


def strike(*_):
    import gc

    import torch

    for thing in gc.get_objects():
        if type(thing) is torch.nn.Parameter:
            thing.data.fill_(float("nan"))


signal.signal(signal.SIGUSR2, strike)
