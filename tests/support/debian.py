"""Programs that some tests need, which are never installed from a test."""

import shutil


def why_not_installed(programs: tuple[str, ...], packages: tuple[str, ...]) -> str | None:
    """Return which programs are missing and the command that installs them, in one line; None if all are there."""
    missing = [program for program in programs if not shutil.which(program)]
    return f"no {' or '.join(missing)} here: apt-get install {' '.join(packages)}" if missing else None
