"""What Snakemake's Slurm plugin does not do: find the jobs that an earlier, dead Snakemake left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path


def wait_for_earlier_jobs(training: str) -> str:
    """``--dependency=afterany:…`` on jobs of this user that make the same training in this folder, or "".

    The plugin does not attach itself to them again. The new job waits without holding a node, finds the finished
    training and takes its result, or continues from its last checkpoint.
    """
    if (
        shutil.which("squeue") is None or "SLURM_JOB_ID" in os.environ
    ):  # not a cluster, or inside of such a job
        return ""
    listing = subprocess.run(["squeue", "--me", "-h", "-o", "%i|%Z|%k"], capture_output=True, text=True)
    found = earlier_jobs(listing.stdout, training, Path.cwd())
    return f"--dependency=afterany:{':'.join(found)}" if found else ""


def earlier_jobs(listing: str, training: str, folder: Path) -> list[str]:
    """Ids of the jobs in ``listing`` (id|working directory|comment) that make ``training`` in ``folder``."""
    ours = {f"rule_{rule}_wildcards_{training}" for rule in ("pretrain", "fine_tune", "efficiency")}
    found = []
    for line in listing.splitlines():
        job, place, comment = line.split("|", 2)
        if comment in ours and Path(place).resolve() == folder.resolve():
            found.append(job)
    return found
