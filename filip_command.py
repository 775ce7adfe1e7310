"""The console command `filip`.

It is outside of the package, since PyPI has another project called `filip`, of the same import name: where that one
is installed too, `import filip` may be theirs.
"""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions

ENTRY = "filip_command:main"


def main() -> None:
    if sentence := other_project():
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        sys.exit(2)
    try:
        from filip.__main__ import main as command
        from filip.common.errors import stopped_by_ctrl_c

        with stopped_by_ctrl_c(ends=True):
            command()
    except KeyboardInterrupt:  # before the command has begun
        sys.exit(130)


def other_project() -> str | None:
    """Return what to do if the other project called `filip` is installed here; None if it is not."""
    try:
        other = distribution("filip")
    except PackageNotFoundError:
        return None
    ours = this_project()
    name = ours.metadata["Name"] if ours else "this one"
    return (
        f"another project called filip ({other.metadata['Summary'] or 'no summary'}, version {other.version}) is "
        f"installed here, and its files have the places of this one's: pip uninstall -y filip {name}, and install "
        "this project again (docs/installation.md)"
    )


def this_project() -> Distribution | None:
    """How this project is installed here; None if it is only on Python's path."""
    return next((one for one in distributions() if any(point.value == ENTRY for point in one.entry_points)), None)
