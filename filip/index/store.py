"""Image tokens on disk, in the embedded multi-vector store qdrant-edge, ranked by late interaction.

A text's score for an image is s^T, the mean over its tokens of the largest cosine with any token of the image (equation
5 of the paper; a pooled model has one token). The store finds candidates with the sum of these maxima over all images,
exactly; the project's own engine scores the candidates again, in float32, and its order counts.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from qdrant_edge import (
    Distance,
    EdgeConfig,
    EdgeShard,
    EdgeVectorParams,
    MultiVectorComparator,
    MultiVectorConfig,
    Point,
    Query,
    QueryRequest,
    Record,
    ScoredPoint,
    ScrollRequest,
    SearchParams,
    UpdateOperation,
    VectorStorageDatatype,
)
from torch import Tensor

from filip.errors import UserError, first_line
from filip.eval.scorer import Scorer, Texts
from filip.files import nothing_at, write_json

FORMAT = 1
TOKENS = "tokens"  # name of the vectors in the store
DTYPES = {"float32": VectorStorageDatatype.Float32, "float16": VectorStorageDatatype.Float16}
PAGE = 256  # points read at a time
WAIT = 4.0  # seconds for another process to close the store
CANDIDATES = 4  # scored again, for each result that is asked for


@dataclass
class About:
    """What an index was made of. weights: SHA-256 of the model's file, or its name where it is no file."""

    model: str
    weights: str
    image_size: int
    token_wise: bool
    dim: int
    dtype: str
    images: str
    format: int = FORMAT


@dataclass(frozen=True)
class Hit:
    """An image that was found: its path below the indexed folder, and s^T."""

    path: str
    score: float


class Index:
    """An index in a folder: ``about.json`` and the store."""

    def __init__(self, folder: Path, about: About, shard: EdgeShard) -> None:
        self.folder, self.about, self._shard = folder, about, shard

    @classmethod
    def create(cls, folder: str | Path, about: About) -> Index:
        """A new, empty index. UserError for a dtype that the store does not have."""
        if about.dtype not in DTYPES:
            raise UserError(f"dtype={about.dtype}: one of {', '.join(DTYPES)}")
        folder = Path(folder)
        shutil.rmtree(
            folder / "store", ignore_errors=True
        )  # of a build that was killed before its first image
        (folder / "store").mkdir(parents=True)
        vectors = EdgeVectorParams(
            size=about.dim,
            distance=Distance.Dot,  # of unit vectors, so cosines
            on_disk=True,
            multivector_config=MultiVectorConfig(MultiVectorComparator.MaxSim),
            datatype=DTYPES[about.dtype],
        )
        shard = EdgeShard.create(str(folder / "store"), EdgeConfig(vectors={TOKENS: vectors}))
        write_json(folder / "about.json", asdict(about))  # last: an index without it is none
        return cls(folder, about, shard)

    @classmethod
    def open(cls, folder: str | Path) -> Index:
        """An index that ``filip index build`` has written. UserError if there is none, or of a later version."""
        folder = Path(folder)
        file = folder / "about.json"
        if not file.is_file():
            if not folder.exists():
                raise UserError(nothing_at(folder, f"make an index with `filip index build … out={folder}`"))
            raise UserError(f"no index at {folder}: make one with `filip index build … out=INDEX`")
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            if about.get("format") != FORMAT:
                raise UserError(
                    f"{folder} has format {about.get('format')}, this version reads {FORMAT}: build it again"
                )
            return cls(folder, About(**about), _load(folder))
        except UserError:
            raise
        # of JSON, of another file's keys, or of the store, whose errors have no class of their own
        except Exception as error:
            raise UserError(
                f"the index at {folder} is damaged ({first_line(error)}): delete it and build it again"
            ) from error

    def __len__(self) -> int:
        return sum(1 for _ in self._records(False))

    def close(self) -> None:
        """Write what is in memory and release the store."""
        self._shard.flush()
        self._shard.close()

    # ---- what is in it -------------------------------------------------------------------------------

    def stamps(self) -> dict[str, str]:
        """The stamp of every image by its path; see :class:`filip.sets.image_set.Item`."""
        found = [_payload(record) for record in self._records(False)]
        return {payload["path"]: payload["stamp"] for payload in found}

    def tokens(self) -> Iterator[tuple[str, Tensor]]:
        """Path and tokens [n1, d] float32 of every image."""
        for record in self._records(True):
            yield _payload(record)["path"], _tokens(record.vector)

    def add(self, paths: Sequence[str], stamps: Sequence[str], features: Tensor) -> None:
        """Add images, or replace those of the same path, and write them to disk.

        features: [n, n1, d], or [n, d] of a pooled model; unit vectors.
        """
        values = features.float().cpu().numpy()
        if values.ndim == 2:
            values = values[:, None]
        points = [
            Point(_id(path), {TOKENS: value.tolist()}, {"path": path, "stamp": stamp})
            for path, stamp, value in zip(paths, stamps, values, strict=True)
        ]
        self._shard.update(UpdateOperation.upsert_points(points))
        self._shard.flush()

    def remove(self, paths: Sequence[str]) -> None:
        """Forget images."""
        self._shard.update(UpdateOperation.delete_points([_id(path) for path in paths]))
        self._shard.flush()

    def _records(self, with_vector: bool) -> Iterator[Record]:
        offset = None
        while True:
            records, offset = self._shard.scroll(
                ScrollRequest(offset=offset, limit=PAGE, with_payload=True, with_vector=with_vector)
            )
            yield from records
            if offset is None:
                return

    # ---- search --------------------------------------------------------------------------------------

    def search(self, scorer: Scorer, text: str, count: int = 10) -> list[Hit]:
        """The ``count`` images with the largest s^T for a text, best first; equal ones by path."""
        texts = scorer.encode_texts([text]).to("cpu")
        query = texts.values.float()
        request = QueryRequest(
            limit=count * CANDIDATES,
            query=Query.Nearest(query.numpy().tolist(), using=TOKENS),
            with_vector=True,
            with_payload=True,
            params=SearchParams(exact=True),
        )
        found = self._shard.query(request)
        if not found:
            return []
        paths = [_payload(point)["path"] for point in found]
        features = torch.stack([_tokens(point.vector) for point in found])
        if not self.about.token_wise:
            features = features[:, 0]
        scores = scorer.similarity(features, Texts(query, texts.lengths)).t2i[:, 0].tolist()
        hits = [Hit(path, score) for path, score in zip(paths, scores, strict=True)]
        return sorted(hits, key=lambda hit: (-hit.score, hit.path))[:count]


def _load(folder: Path) -> EdgeShard:
    """The store, which one process has at a time: wait for another one briefly. UserError if it keeps it."""
    waited_until = time.monotonic() + WAIT
    while True:
        try:
            return EdgeShard.load(str(folder / "store"))
        except Exception as error:  # the store's errors have no class of their own
            if "WouldBlock" not in str(error):
                raise
            if time.monotonic() > waited_until:
                raise UserError(
                    f"another process has the index {folder} open, a build or a search: try again when it has ended"
                ) from error
        time.sleep(0.1)


def _id(path: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, path))


def _payload(point: Record | ScoredPoint) -> dict[str, str]:
    assert point.payload is not None
    return point.payload


def _tokens(vector: object) -> Tensor:
    assert isinstance(vector, dict)
    return torch.from_numpy(np.asarray(vector[TOKENS], dtype=np.float32))
