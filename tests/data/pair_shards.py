"""Shards as img2dataset writes them, whose images show which pair they belong to, and small loaders of them."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from filip.loading.augment_on_device import Crops
from filip.loading.config import DataConfig, Source, StreamConfig
from filip.loading.loader import PairLoader, build_loader
from tests.support.shards import Sample, encoded, write_shard


@dataclass
class Pairs:
    """A small data set on disk. Pair n (counted over all shards) has the colour ``colour(n)``."""

    root: Path
    counts: Sequence[int]

    @property
    def source(self) -> Source:
        return Source(str(self.root / "shards"), str(self.root / "captions"))

    @property
    def keys(self) -> list[str]:
        return [key_of(shard, i) for shard, n in enumerate(self.counts) for i in range(n)]

    def tar(self, shard: int) -> Path:
        return self.root / "shards" / f"{shard:05d}.tar"

    def sidecar(self, shard: int) -> Path:
        return self.root / "captions" / f"{shard:05d}.parquet"


def key_of(shard: int, i: int) -> str:
    return f"{shard:05d}{i:04d}"


def colour(n: int) -> tuple[int, int, int]:
    return (n * 37 % 256, n * 101 % 256, (n // 7) * 59 % 256)


def number_of(pixels: torch.Tensor, total: int) -> int:
    """Return which pair an image, uint8 [3, H, W], shows."""
    seen = pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2].numpy().astype(int)
    distances = [abs(seen - np.array(colour(n))).sum() for n in range(total)]
    assert min(distances) <= 6
    return int(np.argmin(distances))


def write_pairs(root: Path, counts: Sequence[int], captions: int = 2, size: int = 20) -> Pairs:
    """Write ``counts[s]`` pairs in shard s; caption c of pair n is ``thing n c`` and its group is n // 2."""
    n = 0
    for shard, count in enumerate(counts):
        samples = []
        for i in range(count):
            image = encoded(Image.new("RGB", (size, size), colour(n)), "JPEG", quality=95)
            texts = [f"thing {n} {c}" for c in range(captions)]
            key = key_of(shard, i)
            samples.append(Sample(key, image, texts, n // 2, "jpg", json.dumps({"key": key})))
            n += 1
        write_shard(root, shard, samples)
    return Pairs(root, counts)


DATA_FIELDS = {field.name for field in dataclasses.fields(DataConfig)}


def loader(pairs: Pairs | list[Source], *, epoch: int = 0, transform: Any = None, **options: Any) -> PairLoader:
    """Make a loader with small settings; options: fields of DataConfig and of StreamConfig."""
    settings = {"batch_size": 4, "image_size": 16, "seed": 3, "shuffle_window_shards": 2, "workers": 0} | options
    data = {name: settings.pop(name) for name in list(settings) if name in DATA_FIELDS}
    sources = [pairs.source] if isinstance(pairs, Pairs) else pairs
    made = build_loader(StreamConfig(DataConfig(sources=sources, **data), **settings), transform=transform)
    if epoch:
        made.load_state_dict(made.state_dict() | {"epoch": epoch})
    return made


def keys(batches: list[dict[str, Any]]) -> list[str]:
    return [key for batch in batches for key in batch["key"]]


def assert_same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name, value in x.items():
            parts = [each if isinstance(each, Crops) else [each] for each in (value, y[name])]
            for one, other in zip(*parts, strict=True):
                assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, name
