"""Data sets that several files read."""

import pytest

from tests.data.pair_shards import Pairs, write_pairs

COUNTS = [9, 1, 14, 0, 6]  # uneven, one without a pair: 30 pairs


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return write_pairs(tmp_path_factory.mktemp("pairs"), COUNTS)
