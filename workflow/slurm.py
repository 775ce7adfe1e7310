"""Find the Slurm jobs that an earlier, dead Snakemake left behind, which its plugin does not do."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from filip.errors import UserError

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
    found = earlier_jobs(listing, training, Path.cwd())
    return f"--dependency=afterany:{':'.join(found)}" if found else ""


def earlier_jobs(listing: str, training: str, folder: Path) -> list[str]:
    """Return the ids of the jobs in ``listing`` (id|working directory|comment) that make ``training`` in ``folder``."""
    ours = {f"rule_{rule}_wildcards_{training}" for rule in ("pretrain", "fine_tune", "efficiency")}
    found = []
    for line in listing.splitlines():
        job, place, comment = line.split("|", 2)
        if comment in ours and Path(place).resolve() == folder.resolve():
            found.append(job)
    return found
