"""The data that trainings of this folder see."""

from pathlib import Path

import pytest

from tests.support.squares import write_shards


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``shards`` and ``captions``: 3 shards of 64 pairs."""
    folder = tmp_path_factory.mktemp("squares")
    write_shards(folder, shards=3, per_shard=64)
    return folder
