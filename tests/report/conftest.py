from pathlib import Path

import pytest

from filip.report import differences
from tests.report.results import write_results


@pytest.fixture
def folder(tmp_path) -> Path:
    write_results(tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture
def one_training_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let differences hold that are significant over the images of one training."""
    monkeypatch.setattr(differences, "FEWEST", 1)
