"""The settings of base.yaml, scaled down to seconds, learn with a quarter of the tokens."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.shards import Sample, encoded, write_shard
from tests.support.training import run_many, series, train_arguments

WORDS = [  # one for each pattern
    "dog", "cat", "cow", "horse", "sheep", "duck", "bear", "lion", "wolf", "fish", "bird", "bee", "tree",
    "rose", "leaf", "grass", "sun", "moon", "star", "rain", "snow", "wind", "fire", "rock", "car", "bus",
    "train", "boat", "plane", "bike", "road", "house", "door", "roof", "wall", "bed", "chair", "table", "lamp",
    "book", "pen", "cup", "fork", "knife", "spoon", "bowl", "hat", "shoe",
]  # fmt: skip
PATTERNS = len(WORDS)
SIDE, BATCH, STEPS = 5, 64, 150  # patches a side, pairs, steps


def write_patterns(folder: Path, shards: int = 4, per_shard: int = 600) -> None:
    """Write pictures of three patterns of 8 x 8 px among noise, whose captions name them: a dog, a cup and a hat."""
    draw = np.random.default_rng(0)
    patterns = draw.normal(size=(PATTERNS, 8, 8, 3))
    for shard in range(shards):
        samples = []
        for number in range(per_shard):
            places, shown = draw.permutation(SIDE * SIDE)[:3], draw.permutation(PATTERNS)[:3]
            cells = 0.5 * draw.normal(size=(SIDE * SIDE, 8, 8, 3))
            cells[places] += patterns[shown]
            rows = cells.reshape(SIDE, SIDE, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(8 * SIDE, 8 * SIDE, 3)
            one, other, last = (WORDS[i] for i in shown)
            group = int(np.sort(shown) @ [PATTERNS**2, PATTERNS, 1])
            image = encoded(Image.fromarray(np.clip(128 + 50 * rows, 0, 255).astype(np.uint8)))
            samples.append(Sample(f"{shard:05d}{number:04d}", image, [f"a {one}, a {other} and a {last}"], group))
        write_shard(folder, shard, samples)


@pytest.mark.slow
def test_base_yaml_learns_with_a_quarter_of_the_tokens(tmp_path: Path) -> None:
    write_patterns(tmp_path)
    settings = {
        "experiment": "base", "global_batch": BATCH, "epochs": "null", "max_steps": STEPS, "log_every": 50,
        "model.image.layers": 1, "model.text.layers": 1, "model.embed_dim": 32, "model.image.image_size": 8 * SIDE,
        "model.gradient_checkpointing": False, "data.reader_groups": 1, "data.auto_augment": 0, "engine": "ddp",
        "data.crop_scale_min": 1, "data.flip_probability": 0, "data.back_translation": False, "seed": 1,
        # the peak rate, decay and temperature of base.yaml, with a warm-up of a third
        "optimizer.base_lr": 2e-3 * math.sqrt(40960 / BATCH), "optimizer.weight_decay": 3e-3,
        "optimizer.temperature_lr_factor": 0.1, "optimizer.warmup_steps": STEPS // 3,
        "token_keep_schedule": f"switch from 1 to 0.25 at step {STEPS // 3}",
    }  # fmt: skip
    arguments = train_arguments(tmp_path, tmp_path / "run", *(f"{name}={value}" for name, value in settings.items()))
    assert run_many(1, [arguments], tmp_path / "log") == [0], (tmp_path / "log").read_text()[-3000:]
    assert series(tmp_path / "run", "loss/total")[-1] < 0.5 * math.log(BATCH)
    assert series(tmp_path / "run", "accuracy/i2t")[-1] > 0.5
