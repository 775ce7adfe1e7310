"""Daemons that the tests of clusters start: from Debian's packages, installed where that is possible."""

import os
import shutil
import subprocess


def why_not_installed(programs: tuple[str, ...], packages: tuple[str, ...]) -> str | None:
    """Return why the programs are not to be had, in one line; None if they are there, or have just been installed."""
    if all(map(shutil.which, programs)):
        return None
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return f"no {' or no '.join(p for p in programs if not shutil.which(p))} here, and apt-get cannot install it"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    for command in (["apt-get", "update", "-q"], install):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return f"apt-get could not install {' '.join(packages)}: {done.stderr.strip()[-200:]}"
    return None
