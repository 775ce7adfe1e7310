"""Fixtures: a study's config, and a clone in which studies run."""

from pathlib import Path

import pytest
import yaml

from tests.support.snakemake_runs import write_clone
from workflow.study import ROOT


@pytest.fixture
def demo() -> dict:
    """Return the demo with one seed of each run; every table evaluates all of them where a test gives more."""
    config = yaml.safe_load((ROOT / "workflow" / "config" / "demo.yaml").read_text())
    del config["seeds"], config["eval"]["one_seed"]
    return config


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the repository as a fresh checkout has it, for the tests of one file."""
    return write_clone(tmp_path_factory.mktemp("clone") / "filip")
