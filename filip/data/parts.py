"""The part of a stage's work that a job takes when several share it: ``part=3/16``."""

from __future__ import annotations

from filip.errors import UserError


def parse_part(part: str | None) -> tuple[int, int] | None:
    """Parse "3/16" into (3, 16). Raises UserError for anything else."""
    if part is None:
        return None
    try:
        index, count = (int(number) for number in part.split("/"))
    except ValueError:
        index, count = -1, 0
    if not 0 <= index < count:
        raise UserError(f"part={part}, but it must be i/n with 0 <= i < n, e.g. part=0/4")
    return index, count
