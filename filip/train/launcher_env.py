"""The environment that a launcher gives a process, and its exit codes. Imports the standard library only."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, MutableMapping

from filip.common.errors import UserError

# Exit codes of a training.
STOPPED_BY_SIGNAL = 85  # saved at a step boundary because of SIGTERM or SIGUSR1; start again to continue
USERS_MISTAKE = 2  # found by the checks before the first step; also: out of memory
NOT_FINITE = 70  # numbers that stayed not finite; one other start may help, and then a person has to decide
MACHINE_FAILED = 74  # once training: a disk, or a damaged shard; start again
# Phrases in the messages of gloo, TCP stores and NCCL.
_SIGNS_OF_LOST_CONTACT = (
    "Timed out waiting", "Application timeout caused pair closure",
    "Connection closed by peer", "Connection reset by peer", "Software caused connection abort", "Broken pipe",
    "Socket Timeout",
    "No route to host", "Network is unreachable", "operation timeout", "NCCL communicator was aborted",
)  # fmt: skip
# Below Linux's ephemeral ports (from 32768 on), of which any process may hold one at the moment.
FIRST_PORT, PORTS = 20000, 12000
LOST_CONTACT = "has lost contact with the other ranks"
EXIT_CODE_FILE = "FILIP_EXIT_CODE_FILE"  # where the first rank leaves its exit code, if that is set


def environment_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return the rank that the launcher gave this process; 0 without a launcher."""
    step = _in_step(environment)
    return int(environment.get("RANK", environment["SLURM_PROCID"] if step else "0"))


def this_rank() -> str:
    return f"rank {environment_rank()} on {socket.gethostname()}"


class MachineError(Exception):
    """The reason why this rank stopped after the first step began, in a sentence: a disk, a shard, but no setting."""

    def __init__(self, sentence: str, code: int = MACHINE_FAILED) -> None:
        super().__init__(sentence)
        self.code = code  # of the process


def fill_environment(expected: int | None = None, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that torch.distributed reads where the launcher did not: for srun, or for one process alone.

    deepspeed and torchrun set them all. A task of srun takes its rank from Slurm; all meet on the first node of the
    step, at a port that follows from the job's id. ``MASTER_ADDR`` and ``MASTER_PORT`` overrule that.

    Raises UserError if there are not ``expected`` ranks, or if a process of a Slurm allocation of several tasks was not
    started by srun: it would wait for the others until the time-out.
    """
    if "RANK" not in environment and _in_step(environment):
        environment["RANK"] = environment["SLURM_PROCID"]
        environment["WORLD_SIZE"] = environment["SLURM_STEP_NUM_TASKS"]
        environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
        on_nodes: list[str] = []  # the step's tasks on each node in turn, from "8(x2),4"
        for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
            count, _, times = part.rstrip(")").partition("(x")
            on_nodes += [count] * int(times or 1)
        here = on_nodes[min(int(environment.get("SLURM_NODEID", "0")), len(on_nodes) - 1)]
        environment.setdefault("LOCAL_WORLD_SIZE", here)
        environment.setdefault("MASTER_ADDR", first_host(environment["SLURM_STEP_NODELIST"]))
        environment.setdefault("MASTER_PORT", str(FIRST_PORT + int(environment.get("SLURM_JOB_ID", "0")) % PORTS))
    elif "RANK" not in environment:
        tasks = int(environment.get("SLURM_NTASKS", "1"))
        if tasks > 1:
            raise UserError(
                f"SLURM_NTASKS={tasks}: this is an allocation for {tasks} tasks, and srun did not start this process. "
                "Start it with srun --nodes=… --ntasks-per-node=…, or with deepspeed or torchrun; for a single process "
                "unset SLURM_NTASKS"
            )
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        with socket.socket() as probe:  # a free port
            probe.bind(("127.0.0.1", 0))
            environment.update(alone, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(probe.getsockname()[1]))
    world_size = int(environment["WORLD_SIZE"])
    if expected is not None and world_size != expected:
        raise UserError(
            f"{world_size} ranks were started, and world_size={expected} says how many there should be. With srun give "
            "--nodes and --ntasks-per-node in full; world_size=null accepts any number"
        )


def lost_contact(error: BaseException) -> str | None:
    """Return a sentence for an error that torch raises where a peer is dead or the network is cut, else None."""
    said = str(error).strip()
    if not isinstance(error, RuntimeError) or not any(sign in said for sign in _SIGNS_OF_LOST_CONTACT):
        return None
    return (
        f"{this_rank()} {LOST_CONTACT}: one of them has died, or the network between them is down "
        "(a collective may take timeout_minutes). Started again, the run continues from its last checkpoint. torch "
        f"says: {said.splitlines()[0]}"
    )


def first_host(nodes: str) -> str:
    """Return the first name of a Slurm list: ``node[03-07,9]`` is node03, ``a[1,3]-x,b`` is a1-x."""
    head = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert head is not None
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", head.group())


def _in_step(environment: Mapping[str, str]) -> bool:
    """Return True in a task of srun; the batch script and an allocation's shell are steps of one task, or none."""
    return "SLURM_STEP_ID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1
