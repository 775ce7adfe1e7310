"""Say which lists and images of a study are not there; `make run` and `make dry-run` do.

python -m workflow.sources workflow/config/mine.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from filip.errors import UserError
from workflow.study import WorkflowStudy


def check(config: Path) -> None:
    """Raise a UserError that names each source of the study whose list or images are not there."""
    study = WorkflowStudy(yaml.safe_load(config.read_text()))
    if missing := study.missing_sources():
        raise UserError(
            f"{config}: {len(missing)} of its {len(study.sources)} sources cannot be read:\n"
            + "\n".join(f"  {source}: {sentence}" for source, sentence in missing.items())
            + "\nIn a study a list is named by the source's card: `list: PATH` in data/NAME.yaml"
        )


if __name__ == "__main__":
    try:
        check(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(f"error: {error}")
