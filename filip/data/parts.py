"""The part of the work that a job takes when several share it, counted from 0: ``part=3/16``."""

from __future__ import annotations

from filip.common.errors import UserError


def parse_part(part: str | None) -> tuple[int, int] | None:
    """Parse "3/16" into (3, 16), None and "" into None. Raises UserError for anything else."""
    if not part:
        return None
    index, _, count = part.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        last = f", here 0/{count} to {int(count) - 1}/{count}" if count.isdecimal() and int(count) else ""
        raise UserError(
            f"part={part}: parts are counted from 0{last}; e.g. part=$SLURM_ARRAY_TASK_ID/8 with sbatch --array=0-7"
        )
    return int(index), int(count)
