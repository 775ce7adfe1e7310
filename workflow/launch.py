"""Build the command that starts a training: its launcher, and the threads that it takes of Snakemake.

On Slurm also find the jobs that an earlier, dead Snakemake left behind, which its plugin does not do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filip.common.errors import UserError


@dataclass(frozen=True)
class Launch:
    """The way in which one training command is started: by what, on how many ranks, with which resources."""

    launcher: str
    ranks_per_node: int
    cpus_per_rank: int
    nodes: int = 1
    accelerator: str | None = None
    master_port: int = 29500
    side_by_side: int = 1
    resources: dict[str, Any] = field(default_factory=dict)

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node

    @property
    def ranks_of_a_start(self) -> int:
        """Return the ranks that share the threads of Snakemake's job: srun counts them per task."""
        return 1 if self.launcher == "srun" else self.ranks_per_node

    @property
    def local_gpus(self) -> int:
        """Return the GPUs of this machine that a training takes.

        They are 0 if it trains on CPUs, or where a scheduler gives it GPUs.
        """
        elsewhere = self.launcher == "srun" or {"gres", "gpu"} & set(self.resources)
        return 0 if elsewhere or self.accelerator == "cpu" else self.ranks_per_node

    @property
    def requeues(self) -> str:
        """Return whether a training's job may put itself back into the queue: ``filip train supervise requeue=…``."""
        return "true" if self.launcher == "srun" else "false"

    def command(self, module: str = "filip.train") -> str:
        """Return the launcher's part of the command line, up to and without the arguments of ``module``."""
        accelerator = f"DS_ACCELERATOR={self.accelerator} " if self.accelerator else ""
        if self.launcher == "srun":
            # One task per GPU, so that signals reach every rank. Snakemake's job step removes Slurm's variables: srun
            # knows only these settings, and would otherwise start one task per node.
            return (
                f"{accelerator}srun --nodes={self.nodes} --ntasks-per-node={self.ranks_per_node}"
                f" --cpus-per-task={self.cpus_per_rank} --kill-on-bad-exit=1 python -m {module}"
            )
        if self.ranks_per_node == 1 and self.accelerator == "cpu":
            return f"{accelerator}python -m {module}"  # one process needs no launcher
        prefix = f"{accelerator}python -m workflow.gpus {self.local_gpus} port={self.master_port} -- "
        if self.local_gpus:
            # DeepSpeed's launcher ignores CUDA_VISIBLE_DEVICES if it is given --num_gpus.
            which = "--include localhost:@gpus --master_port @port"
            return f"{prefix}deepspeed {which} --module {module}"
        ranks = f"--num_gpus {self.ranks_per_node} --master_port {self.master_port}"
        return f"{accelerator}deepspeed {ranks} --module {module}"

    def threads(self, cores: Callable[[], int | None]) -> int:
        """Return Snakemake's threads: under srun the cores of a task, on one machine the cores of all ranks.

        If it trains on the CPU of one machine, they are its share of the cores where ``side_by_side`` trainings run at
        once. ``cores`` is only asked then: a cluster's profile gives no number of cores.
        """
        if self.launcher == "srun":
            return self.cpus_per_rank
        cpu = self.accelerator == "cpu"
        return max(self.ranks_per_node, (cores() or 1) // self.side_by_side) if cpu else self.ranks_per_node


ANSWERS_WITHIN = 120  # seconds: a busy controller takes its time, a dead one keeps squeue waiting for good


def wait_for_earlier_jobs(training: str) -> str:
    """Return ``--dependency=afterany:…`` on this user's jobs that make the same training in this folder, or "".

    The plugin does not attach itself to them again. The new job waits without holding a node, finds the finished
    training and takes its result, or continues from its last checkpoint.
    """
    # not a cluster, or already inside such a job
    if shutil.which("squeue") is None or "SLURM_JOB_ID" in os.environ:
        return ""
    command = ["squeue", "--me", "-h", "-o", "%i|%Z|%k"]
    why = None
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=ANSWERS_WITHIN, check=True).stdout
    except subprocess.TimeoutExpired:
        why = f"no answer in {ANSWERS_WITHIN} s"
    except subprocess.CalledProcessError as error:
        why = error.stderr.strip()
    if why:
        raise UserError(
            f"squeue does not say which jobs are queued ({why}), so '{training}' may be in training already; start "
            "again when Slurm's controller answers"
        )
    jobs = earlier_jobs(listing, training, Path.cwd())
    return f"--dependency=afterany:{':'.join(jobs)}" if jobs else ""


def earlier_jobs(listing: str, training: str, folder: Path) -> list[str]:
    """Return the ids of the jobs in ``listing`` (id|working directory|comment) that make ``training`` in ``folder``."""
    ours = {f"rule_{rule}_wildcards_{training}" for rule in ("pretrain", "fine_tune", "efficiency")}
    jobs = []
    for line in listing.splitlines():
        job, place, comment = line.split("|", 2)
        if comment in ours and Path(place).resolve() == folder.resolve():
            jobs.append(job)
    return jobs
