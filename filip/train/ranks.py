"""Start the ranks of a training with their threads and devices, and let them fail or stop together."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from filip.common.device import own_device
from filip.common.errors import UserError
from filip.train.launcher_env import MachineError, fill_environment
from late_interaction import use_host_group

T = TypeVar("T")
# How long ranks wait for what some of them do alone: comparing data, converting checkpoints, writing, evaluating.
PATIENCE = timedelta(hours=4)
# What a rank on a GPU sets unless its user has: less memory lost between blocks of other sizes, and NCCL's last
# collectives written down when one of them times out.
GPU_ENVIRONMENT = {
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device
    # A further group of all ranks, on the CPU (gloo) and with more patience: for all messages and waits between steps.
    # None for one rank alone.
    side: Any = None
    # A group of all ranks on the CPU with the patience of a step; None is the default group, if it can.
    host: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: T, within_step: bool = False) -> list[T]:
        """Return everybody's ``value``, in order of rank: anything that can be pickled, with tensors on the CPU.

        within_step: with the time-out of a step's collectives instead of the patience between steps.
        """
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=None if within_step else self.side)
        return values

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each value over all ranks, through the hosts: nobody waits for a device."""
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.world_size > 1:
            dist.all_reduce(tensor, group=self.host)
        return tensor.tolist()

    def loader_processes(self, wanted: int) -> int:
        """Return how many processes this rank's loader gets: at most its share of its host's cores, less its own.

        All ranks call. The cores come from the affinity masks, which a scheduler gives per rank or per host.
        """
        masks = self.gather((socket.gethostname(), os.sched_getaffinity(0)))
        here = [mask for host, mask in masks if host == socket.gethostname()]
        return min(wanted, max(1, len(set().union(*here)) // len(here) - 1))

    def limit(self, minutes: float) -> None:
        """Let collectives of steps take at most this long from now on; :func:`start_ranks` set a first limit."""
        set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # PyTorch < 2.13
        for group in (None, self.host):
            set_timeout(timedelta(minutes=minutes), group)

    def maximum(self, value: float) -> float:
        """Return the maximum of ``value`` over all ranks."""
        tensor = torch.tensor([value], dtype=torch.float32, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return float(tensor)


def start_ranks(expected: int | None = None, timeout_minutes: float = 5) -> Ranks:
    """Join the process group that the launcher's environment describes, or be a group of one.

    Understands deepspeed and torchrun (RANK, WORLD_SIZE, …), and srun with one task per GPU (SLURM_PROCID, …).
    Without OMP_NUM_THREADS the ranks of one host share its cores. Raises UserError, before anybody waits
    for anybody, if the launcher started another number of ranks than ``expected``. timeout_minutes: limit of a
    collective, six times as long until :meth:`Ranks.limit` is called: kernels are compiled in the first steps.
    """
    fill_environment(expected)
    try:
        socket.getaddrinfo(os.environ["MASTER_ADDR"], None)
    except socket.gaierror as error:  # torch would ask again and again, until the time-out
        raise MachineError(
            f"the first rank's host, {os.environ['MASTER_ADDR']!r}, has no address here ({error.strerror}); set "
            "MASTER_ADDR to a name or an address that all hosts know"
        ) from error
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ["LOCAL_RANK"])
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", world_size)))
    # Set in any case: PyTorch follows MKL_NUM_THREADS, which Snakemake sets to all threads of a job. Two ranks with two
    # threads each wait for each other on two cores, ten times as long as they compute.
    shared = max(1, len(os.sched_getaffinity(0)) // max(1, local_world_size))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", shared)))
    # DeepSpeed's variable counts for both engines
    device = torch.device("cpu") if os.environ.get("DS_ACCELERATOR") == "cpu" else own_device(local_rank)
    if device.type != "cpu":
        for name, value in GPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        torch.accelerator.set_device_index(device.index or 0)
    timeout = timedelta(minutes=6 * timeout_minutes)
    if not dist.is_initialized():
        backend = dist.get_default_backend_for_device(device)
        # torchrun keeps one store over all its starts: without a prefix a rank would ask a dead one's address there
        store = next(iter(dist.rendezvous("env://", rank, world_size, timeout=timeout)))[0]
        store = dist.PrefixStore(f"start{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    side = host = None
    if world_size > 1 and device.type != "cpu":
        host = dist.new_group(backend="gloo", timeout=timeout)
        use_host_group(host)
    if world_size > 1:
        side = dist.new_group(backend="gloo", timeout=PATIENCE)
    return Ranks(rank, world_size, local_rank, local_world_size, device, side, host)


@contextmanager
def raise_together(ranks: Ranks) -> Iterator[None]:
    """Raise a UserError of any rank inside the block on all ranks, so that none is left waiting."""
    raised: UserError | None = None
    try:
        yield
    except UserError as error:
        raised = error
    for rank, report in enumerate(ranks.gather(None if raised is None else (type(raised), str(raised)))):
        if report is not None:
            kind, message = report
            raise kind(message if rank == 0 else f"{message} (rank {rank})") from raised


class StopSignal:
    """A handler of SIGTERM, SIGUSR1 and Ctrl-C: save at the next step boundary on all ranks, then exit with 85.

    promise: the next event, for the line that answers the signal. A second Ctrl-C ends at once.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.promise = "stopping before the first step"
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        # os.write: print is not safe inside a signal handler
        os.write(sys.stderr.fileno(), f"{self.received}: {self.promise}\n".encode())


def barrier(ranks: Ranks) -> None:
    """Wait for all ranks, for :data:`PATIENCE` at most."""
    if ranks.world_size > 1:
        dist.barrier(group=ranks.side)


def from_main(ranks: Ranks, value: T) -> T:
    """Return the first rank's ``value`` on all ranks; anything that can be pickled."""
    return ranks.gather(value)[0]
