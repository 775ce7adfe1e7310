"""Both engines train as a plain PyTorch loop does, up to the rounding of float32."""

from pathlib import Path

import pytest

from tests.support.launched_ranks import Ranks

WORKER = str(Path(__file__).parent / "exactness_worker.py")


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_twenty_steps_are_those_of_a_plain_loop(world_size: int, tmp_path: Path) -> None:
    distances = Ranks(world_size, [WORKER], tmp_path / "log").result()
    assert distances.pop("refused") == 1, "LAMB without a part of a parameter"
    assert len(distances) == 14 and max(distances.values()) <= 3e-6, distances
