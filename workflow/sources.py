"""Say which lists and images of a study are not there; `make run` (in the Snakefile) and `make dry-run` do.

python -m workflow.sources workflow/config/mine.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from filip.errors import UserError
from workflow.study import WorkflowStudy


def check(config: Path) -> None:
    """Raise a UserError that names each source of the study whose list or images are missing."""
    require(WorkflowStudy(yaml.safe_load(config.read_text())), str(config))


def require(study: WorkflowStudy, name: str) -> None:
    """Do the same for a study that has been read; ``name`` is what to call it."""
    if missing := study.missing_sources():
        raise UserError(
            f"{name}: {len(missing)} of its {len(study.sources)} sources cannot be read:\n"
            + "\n".join(f"  {source}: {sentence}" for source, sentence in missing.items())
            + "\nIn a study a list is named by the source's card: `list: PATH` in data/NAME.yaml"
        )


if __name__ == "__main__":
    try:
        check(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(f"error: {error}")
