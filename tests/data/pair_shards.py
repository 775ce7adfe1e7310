"""Shards as img2dataset writes them, whose images show which pair they belong to."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from filip.data.loading.config import Source
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
