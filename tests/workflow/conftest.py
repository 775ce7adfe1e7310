"""A study's config for the tests of what the workflow makes of it."""

import pytest
import yaml

from workflow.study import ROOT


@pytest.fixture
def demo() -> dict:
    return yaml.safe_load((ROOT / "workflow" / "config" / "demo.yaml").read_text())
