"""Map each part of the package to the extra of pyproject.toml that it needs; the core needs none."""

from __future__ import annotations

import json
import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from filip.common.errors import UserError

PROJECT = "filip-pretraining"  # PyPI's `filip` is another project
# The longest prefix of a module's name counts. tests/test_extras.py checks every import against pyproject.toml.
EXTRAS = {
    "filip.data": "data",
    "filip_demo": "demo",
    "filip.loading": "train",
    "filip.eval": "eval",
    "filip.explore": "eval",
    "filip.export": "export",
    "filip.new": "data",
    "filip.report": "report",
    "filip.runs": "train",
    "filip.sets": "eval",
    "filip.study": "report",
    "filip.study.efficiency": "train",
    "filip.train": "train",
}


def extra_of(module: str) -> str | None:
    """Return the extra that ``module`` (``filip.data.download``) needs; None for the core."""
    parts = module.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((EXTRAS[prefix] for prefix in prefixes if prefix in EXTRAS), None)


def missing_extra(error: ModuleNotFoundError, module: str) -> Exception:
    """Return a UserError that names the extra to install; ``error`` itself if a module of ours is missing."""
    missing = (error.name or "").partition(".")[0]
    if missing in ("", "filip"):
        return error
    extra = extra_of(module)
    command = how_to_install(extra) if extra else f"pip install {missing}"
    return UserError(f"{module} needs the module {missing!r}, which is not installed: {command}")


def how_to_install(extra: str) -> str:
    """Return the command that adds an extra, from where the project was installed: a checkout, a wheel, an index.

    PyPI's `filip` is another project, so the import name is not what to type.
    """
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file():
        where = "." if Path.cwd() == checkout else os.path.relpath(checkout)
        return f"pip install -e '{where}[{extra}]'"
    try:
        installed = distribution(PROJECT)
    except PackageNotFoundError:
        return f"pip install -e '.[{extra}]' in a checkout"
    name = f"{PROJECT}[{extra}]"
    origin = json.loads(installed.read_text("direct_url.json") or "{}").get("url")
    return f"pip install '{name} @ {origin}'" if origin else f"pip install '{name}'"
