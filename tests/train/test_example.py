"""examples/train.py, a plain PyTorch loop, and the trainer learn the same."""

import re
from pathlib import Path

import pytest

from tests.support.launched_ranks import Ranks
from tests.support.squares import square
from tests.support.training import largest_difference, losses, run_many, train_arguments

EXAMPLE = str(Path(__file__).parents[2] / "examples/train.py")


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_example_and_the_trainer_end_with_the_same_weights(squares: Path, tmp_path: Path, world_size: int) -> None:
    same = (
        "engine=ddp", "optimizer.name=adamw", "optimizer.base_lr=5e-3", "backend=auto", "data.auto_augment=1",
        "data.crop_scale_min=0.5", "data.flip_probability=0.5", "data.back_translation=true",
    )  # fmt: skip
    arguments = train_arguments(squares, tmp_path / "trainer", *same)
    assert run_many(world_size, [arguments], tmp_path / "trainer.log") == [0]
    classes = tmp_path / "classes"
    for number in range(0, 224, 16):
        picture, caption = square(number)
        (classes / caption.removeprefix("a ")).mkdir(parents=True)
        (classes / caption.removeprefix("a ") / "1.png").write_bytes(picture)
    (tmp_path / "example").mkdir()
    options = {
        "shards": squares / "shards", "captions": squares / "captions", "batch": 24, "steps": 20, "warmup": 4,
        "lr": 5e-3, "workers": 0, "test": classes, "out": tmp_path / "example/model.safetensors",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    ranks = Ranks(world_size, [EXAMPLE, *words], tmp_path / "example.log")
    assert ranks.wait() == [0] * world_size, ranks.text()[-3000:]
    assert largest_difference(tmp_path / "example", tmp_path / "trainer") <= 2e-6
    printed = [float(loss) for loss in re.findall(r"loss ([\d.]+)", ranks.text())]
    assert printed == pytest.approx(losses(tmp_path / "trainer")[9::10], abs=2e-6)
    assert re.search(r"zero-shot top-1: \d+\.\d%", ranks.text())
