"""Which extra of pyproject.toml each part of the package needs; the core needs none."""

from __future__ import annotations

from filip.errors import UserError

# The longest prefix of a module's name counts. tests/test_extras.py checks every import against pyproject.toml.
EXTRAS = {
    "filip.data": "data",
    "filip.data.demo": "demo",
    "filip.data.loading": "train",
    "filip.eval": "eval",
    "filip.explore": "explore",
    "filip.index": "index",
    "filip.export": "export",
    "filip.report": "report",
    "filip.study": "report",
    "filip.study_checks": "report",
    "filip.train": "train",
}


def extra_of(module: str) -> str | None:
    """The extra that ``module`` (``filip.data.download``) needs; None for the core."""
    parts = module.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((EXTRAS[prefix] for prefix in prefixes if prefix in EXTRAS), None)


def missing_extra(error: ModuleNotFoundError, module: str) -> Exception:
    """A UserError that names the extra to install; ``error`` itself if what is missing is a module of ours."""
    missing = (error.name or "").partition(".")[0]
    if missing in ("", "filip"):
        return error
    extra = extra_of(module)
    command = f"pip install 'filip[{extra}]'" if extra else f"pip install {missing}"
    return UserError(f"{module} needs the module {missing!r}, which is not installed: {command}")
