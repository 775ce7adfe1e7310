"""A one-host Slurm, and a folder that a person would work in."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.desk import Desk, make_checkout, make_study
from tests.cluster.one_host_slurm import OneHostSlurm, why_not
from tests.train.conftest import squares  # noqa: F401  # a fixture of these tests too

NODES = 24
CPUS = 16  # of a node: the profile lets an evaluation ask for as many


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneHostSlurm]:
    """Yield 24 virtual nodes with 16 cores and 8 GPUs each, as far as Slurm knows."""
    if reason := why_not():
        pytest.skip(reason)
    with OneHostSlurm(tmp_path_factory.mktemp("slurm"), nodes=NODES, cpus=CPUS) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    make_checkout(folder)
    return folder


@pytest.fixture
def desk(checkout: Path, slurm: OneHostSlurm, request: pytest.FixtureRequest) -> Iterator[Desk]:
    name = "".join(c for c in request.node.name if c.isalnum())[-40:].lower()
    result = Desk(checkout, slurm, make_study(name))
    yield result
    result.leave()
    shutil.rmtree(checkout / ".snakemake", ignore_errors=True)
    (checkout / "snakemake.log").unlink(missing_ok=True)
