"""The settings of every training of the studies that one runs, as text: a changed default shows in a diff.

``UPDATE=1 pytest tests/study/test_settings.py`` writes them anew.
"""

import os
from dataclasses import asdict
from pathlib import Path

import pytest

from filip.study import Study, load_study
from filip.train.provenance import flat

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted((ROOT / "workflow/config").glob("*.yaml"))


def settings(study: Study) -> str:
    """Return all settings of the first training, and for each other one those in which it differs."""
    first: dict[str, object] = {}
    lines = []
    for name in [*study.runs, *study.fine_tunes, *study.efficiency]:
        values = dict(flat(asdict(study.resolved(name))))
        lines += [
            f"{name}: {key} = {value}" for key, value in values.items() if key not in first or first[key] != value
        ]
        first = first or values
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_the_settings_of_a_study_are_those_that_were_written_down(file: Path) -> None:
    written = Path(__file__).with_name("settings") / f"{file.stem}.txt"
    text = settings(load_study(file))
    if os.environ.get("UPDATE"):
        written.write_text(text)
    assert text == written.read_text(), "UPDATE=1 writes it anew; look at the diff"
