"""Measure images by perceptual hashes and a model's similarity to their captions, and find images that look alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from filip.common.files import replacing
from filip.data.lists import duckdb_io
from filip.data.shard_index import shard_images
from filip.data.sidecar import read_sidecar
from filip.images.rgb import UNDECODABLE

_scorers: list[Any] = []  # loaded once in each worker process


def perceptual_hash(image: Any) -> int:
    """Return 64 bits as a signed integer: pictures that look alike differ in few of them. image: PIL or pixels."""
    import imagehash

    picture = imagehash.Image.fromarray(image) if isinstance(image, np.ndarray) else image
    # 8 x 8 lowest frequencies of a 32 x 32 picture, each above or below their median
    bits = imagehash.phash(picture).hash.flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True)


def hash_shard(tar: Path, file: Path) -> int:
    """Write the perceptual hash (int64) of each image of a shard; return how many."""
    from filip.loading.transforms import decode

    return _write_hashes(file, shard_images(tar), decode)


def state_of_test_set(card: str, root: str) -> str:
    """Return a hash of the files of a benchmark. Raises UserError if it is missing."""
    from filip.eval.benchmark_images import state_of

    return state_of(card, root)


def hash_test_set(card: str, root: str, file: Path) -> int:
    """Write the perceptual hash of each image of a benchmark; return how many. Raises UserError if it is missing."""
    from filip.eval.benchmark_images import test_images

    return _write_hashes(file, test_images(card, root), lambda image: image)


def _write_hashes(file: Path, images: Iterable[tuple[str, Any]], decoded: Callable[[Any], Any]) -> int:
    keys, hashes = [], []
    for key, image in images:
        try:
            hashes.append(perceptual_hash(decoded(image)))
        except UNDECODABLE:
            continue
        keys.append(key)
    _write(file, keys, pa.array(hashes, pa.int64()), "phash")
    return len(keys)


def start_scorer(model: str) -> None:
    """Load the model in this process."""
    import torch

    from filip.eval.scorer import load_scorer

    torch.set_num_threads(1)  # the processes share the cores
    _scorers[:] = [load_scorer(model, device="auto")]


def score_shard(tar: Path, file: Path, captions: str, batch: int) -> int:
    """Write each pair's similarity of the image and its original caption, the mean of both directions."""
    import torch

    from filip.images.eval_transform import EvalTransform, normalize

    scorer = _scorers[0]
    make = EvalTransform(scorer.image_size)
    texts = {row["key"]: row["captions"][0] for row in read_sidecar(Path(captions) / f"{tar.stem}.parquet")}
    keys: list[str] = []
    scores: list[float] = []
    waiting: list[tuple[str, Any]] = []

    def flush() -> None:
        names, pixels = zip(*waiting, strict=True)
        with torch.inference_mode():
            images = scorer.encode_images(torch.stack(pixels))
            both = scorer.similarity(images, scorer.encode_texts([texts[name] for name in names]))
        keys.extend(names)
        scores.extend(((both.i2t.diagonal() + both.t2i.diagonal()) / 2).tolist())
        waiting.clear()

    for key, data in shard_images(tar):
        if key not in texts:
            continue
        try:
            waiting.append((key, normalize(make.pixels(data))))
        except UNDECODABLE:
            continue
        if len(waiting) == batch:
            flush()
    if waiting:
        flush()
    _write(file, keys, pa.array(scores, pa.float32()), "similarity")
    return len(keys)


def _write(file: Path, keys: list[str], values: pa.Array, name: str) -> None:
    with replacing(file) as part:
        pq.write_table(pa.table({"key": pa.array(keys, pa.string()), name: values}), part)


HASH_BITS = 64


def nearest(con: duckdb.DuckDBPyConnection, images: str, others: str, distance: int, path: Path) -> int:
    """Write for each image the nearest of the others that comes before it; return how many have one.

    images: SQL of (shard, key, id, phash). others: SQL of (id, phash); an image may be among them. Ids are texts, and
    only others with a lower id count: of two copies the first stays. Columns written: shard, key, distance (of at most
    ``distance`` bits) and other (its id), by shard and key.

    Two hashes that differ in at most d bits agree in at least t of d + t bands of bits: for each choice of t bands,
    only the images that share them all are compared. t grows with the number of hashes, so that hardly any that are
    unlike share a choice (for d = 3: 10 choices of 26 bits at 10 million, 20 of 32 bits at 340 million).
    """
    con.execute(f"CREATE OR REPLACE TEMP TABLE asked AS SELECT DISTINCT phash FROM {images}")
    con.execute(f"CREATE OR REPLACE TEMP TABLE seen AS SELECT phash, min(id) AS first FROM {others} GROUP BY phash")
    con.execute(
        "CREATE OR REPLACE TEMP TABLE likes AS SELECT phash, phash AS other, 0 AS distance FROM asked "
        "SEMI JOIN seen USING (phash)"
    )
    counts = con.sql("SELECT (SELECT count(*) FROM asked), (SELECT count(*) FROM seen)").fetchall()[0]
    for masks in band_choices(max(counts), distance) if distance else []:
        con.execute(
            f"""INSERT INTO likes SELECT a.phash, b.phash, bit_count(xor(a.phash, b.phash)) FROM asked a JOIN seen b
                ON a.phash & {masks} = b.phash & {masks} AND a.phash <> b.phash
                WHERE bit_count(xor(a.phash, b.phash)) <= {distance}"""
        )
    return duckdb_io.write_parquet(
        con,
        f"""SELECT shard, key, min(l.distance) AS distance, arg_min(s.first, struct_pack(d := l.distance, f := s.first))
                AS other
            FROM {images} i JOIN likes l USING (phash) JOIN seen s ON s.phash = l.other WHERE s.first < i.id
            GROUP BY shard, key ORDER BY shard, key""",
        path,
        "near-duplicates",
    )


def band_choices(hashes: int, distance: int) -> list[int]:
    """Return bit masks: two hashes that differ in at most ``distance`` bits are equal under one of them."""

    def cost(agreeing: int) -> float:
        bands = distance + agreeing
        shared = HASH_BITS * agreeing / bands  # bits
        return math.comb(bands, agreeing) * (hashes + hashes**2 / 2 ** (shared + 1))

    agreeing = min(range(1, 5), key=cost)
    edges = [HASH_BITS * n // (distance + agreeing) for n in range(distance + agreeing + 1)]
    bands = [((1 << (high - low)) - 1) << low for low, high in pairwise(edges)]
    masks = map(sum, combinations(bands, agreeing))
    return [mask - (1 << HASH_BITS) if mask >> (HASH_BITS - 1) else mask for mask in masks]  # as signed integers
