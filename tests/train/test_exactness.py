"""Both engines train as a plain PyTorch loop does, up to the rounding of float32."""

from pathlib import Path

import pytest

from tests.support.launched_ranks import Ranks
from tests.support.training import losses, run_many, train_arguments

WORKER = str(Path(__file__).parent / "exactness_worker.py")


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_twenty_steps_are_those_of_a_plain_loop(world_size: int, tmp_path: Path) -> None:
    distances = Ranks(world_size, [WORKER], tmp_path / "log").result()
    assert distances.pop("refused") == 1, "LAMB without a part of a parameter"
    assert len(distances) == 14 and max(distances.values()) <= 3e-6, distances


@pytest.mark.slow
def test_muon_trains_like_one_process(squares: Path, tmp_path: Path) -> None:
    """One process and DDP hand Muon whole matrices, ZeRO slices of them."""

    def arguments(name: str, *overrides: str) -> list[str]:
        muon = ("max_steps=6", "model.interaction=pooled", "optimizer.name=muon", "optimizer.base_lr=1e-3")
        return train_arguments(squares, tmp_path / name, *muon, *overrides)

    assert run_many(1, [arguments("one", "engine=ddp")], tmp_path / "one.log") == [0]
    two = [arguments("ddp", "engine=ddp"), arguments("zero2", "zero_stage=2")]
    assert run_many(2, two, tmp_path / "two.log") == [0, 0]
    alone = losses(tmp_path / "one")
    assert len(alone) == 6 and alone[-1] < alone[0]
    for name in ("ddp", "zero2"):
        assert losses(tmp_path / name) == pytest.approx(alone, abs=2e-4), name
