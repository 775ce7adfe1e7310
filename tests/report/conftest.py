from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.results import write_results


@pytest.fixture
def folder(tmp_path) -> Path:
    write_results(tmp_path / "small")
    return tmp_path / "small"
