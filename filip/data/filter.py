"""Filter finished shards, optionally: near-duplicate images, and pairs that a model finds dissimilar.

    python -m filip.data.filter source=cc12m shards=SHARDS captions=CAPTIONS out=FILTERED funnel=filter.json \\
        max_distance=3 model=model.safetensors min_score=0.2

The images stay where they are: the result is a second folder of side-cars, without the rows that are dropped.
The measurements (hashes, scores) are kept in OUT/_measured, one file per shard, for a rerun or another limit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hydra.utils import get_method

from filip.command import MISSING, option, run_command
from filip.data.cards import load_source
from filip.data.funnel import Fragment, write_fragment
from filip.data.lists import duckdb_io
from filip.data.lists.parquet_rows import reading
from filip.data.loading.shard_index import shard_index
from filip.data.sidecar import read_sidecar, write_sidecar
from filip.errors import UserError, counted
from filip.extras import how_to_install
from filip.files import digest, locked, replacing, sha256_of
from filip.worker_pool import run_blocks

HASH_BITS = 64
SAMPLES = 20
_scorers: list[Any] = []  # loaded once in each worker process


@dataclass
class FilterConfig:
    source: str = option(MISSING, "source card (name or path)")
    shards: str = option(MISSING, "folder of the shards")
    captions: str = option(MISSING, "folder of their side-cars")
    out: str = option(MISSING, "folder of the filtered side-cars", writes="folder")
    funnel: str | None = option(None, "funnel fragment to write, JSON", writes="file")
    max_distance: int | None = option(
        None,
        "near-duplicates: perceptual hashes that differ in at most so many of 64 bits",
        at_least=0,
        at_most=64,
    )
    model: str | None = option(None, "model for the score: .safetensors, or open_clip:ARCHITECTURE:TAG")
    scorer: str = option("filip.eval.scorer.load_scorer", "function (model, device) that loads a scorer")
    min_score: float | None = option(
        None, "pairs whose image-text similarity (-1..1) is below are dropped", at_least=-1, at_most=1
    )
    batch: int = option(64, "pairs per batch of the score", at_least=1)
    processes: int = option(2, "processes that measure", at_least=1)
    threads: int = option(2, "DuckDB threads", at_least=1)
    memory: str = option("1GB", "DuckDB memory")


def main(config: FilterConfig) -> None:
    """Drop near-duplicate images and pairs of low similarity, by writing side-cars without them."""
    fragment = filter_pairs(config)
    if config.funnel:
        write_fragment(config.funnel, fragment)
    print(f"{config.out}: {fragment.n_out:,} of {fragment.n_in:,} pairs; dropped {counted(fragment.dropped)}")


def filter_pairs(config: FilterConfig) -> Fragment:
    """Write the filtered side-cars and account for the pairs. Raises UserError for limits that make no sense."""
    card = load_source(config.source)
    tars = _tars(config)
    out = Path(config.out).resolve()
    with locked(out / "_measured" / "lock", f"another process is at work in {out}: wait for it or stop it"):
        con = duckdb_io.connect(config.threads, config.memory, out / "_measured" / "spill")
        reasons: list[str] = []  # SQL of (shard, key, reason, rank), the lowest rank counts
        notes: dict[str, Any] = {"max_distance": config.max_distance, "min_score": config.min_score}
        if config.max_distance is not None:
            files = _named(out / "_measured" / "phash", tars)
            hashes = _measure(tars, files, hash_shard, (), config, "near-duplicates")
            sidecars = [Path(config.captions) / f"{tar.stem}.parquet" for tar in tars]
            # a pair that the side-cars leave out must not make another one a duplicate
            used = (
                f"(SELECT h.* FROM {hashes} h SEMI JOIN (SELECT {duckdb_io.FILE_STEM} AS shard, key FROM "
                f"{duckdb_io.parquet(sidecars, duckdb_io.WITH_FILE)}) c USING (shard, key))"
            )
            found = out / "_measured" / "near_duplicates.parquet"
            near_duplicates(con, used, config.max_distance, found)
            reasons.append(
                f"SELECT shard, key, 'near_duplicate' AS reason, 0 AS rank FROM {duckdb_io.parquet(found)}"
            )
            samples = pq.ParquetFile(found).iter_batches(SAMPLES)
            notes["near_duplicates"] = [
                [[row["shard"], row["key"]], [row["like_shard"], row["like_key"]]]
                for row in next(samples, pa.record_batch({})).to_pylist()
            ]
        if config.min_score is not None:
            assert config.model is not None
            name = (
                sha256_of(config.model)[:16]
                if Path(config.model).is_file()
                else config.model.replace("/", "_")
            )
            scores = _measure(
                tars,
                _named(out / "_measured" / f"score-{name}", tars, Path(config.captions)),
                score_shard,
                (config.captions, config.batch),
                config,
                "image-text score",
                start=(start_scorer, (config.scorer, config.model)),
            )
            low = f"FROM {scores} WHERE score < {float(config.min_score)}"
            reasons.append(f"SELECT shard, key, 'low_score' AS reason, 1 AS rank {low}")
        dropped = con.sql(
            "SELECT shard, key, arg_min(reason, rank) AS reason FROM "
            f"({' UNION ALL '.join(reasons)}) GROUP BY shard, key ORDER BY shard, key"
        )
        counts = _write(tars, Path(config.captions), out, dropped.to_arrow_reader(duckdb_io.ROWS_PER_GROUP))
        con.close()
    n_in = counts.pop("in")
    return Fragment("filter", card.name, n_in, n_in - sum(counts.values()), counts, "pairs", notes)


def _tars(config: FilterConfig) -> list[Path]:
    if config.max_distance is None and config.min_score is None:
        raise UserError("nothing to filter by: give max_distance=3, or model=MODEL min_score=0.2, or both")
    if config.max_distance is not None and not 0 <= config.max_distance < HASH_BITS // 4:
        raise UserError(
            f"max_distance={config.max_distance}, but it must be 0 to {HASH_BITS // 4 - 1} bits of 64"
        )
    if (config.min_score is None) != (config.model is None):
        raise UserError("the score needs both: model=MODEL and min_score=NUMBER")
    if Path(config.out).resolve() == Path(config.captions).resolve():
        raise UserError(f"out={config.out} is the folder of the unfiltered side-cars: give another one")
    if config.max_distance is not None:
        try:
            import imagehash  # noqa: F401 (the workers use it)
        except ImportError as error:
            raise UserError(
                f"near-duplicates (max_distance) need imagehash: {how_to_install('data')}"
            ) from error
    tars = sorted(Path(config.shards).glob("*.tar"))
    if not tars:
        raise UserError(f"no *.tar in {config.shards}: give the folder that `filip data download` filled")
    missing = [tar.stem for tar in tars if not (Path(config.captions) / f"{tar.stem}.parquet").exists()]
    if missing:
        raise UserError(
            f"no side-car of shard {missing[0]} in {config.captions}: run filip.data.translate first"
        )
    return tars


def _named(folder: Path, tars: list[Path], captions: Path | None = None) -> list[Path]:
    """Return a file per shard, SHARD-IDENTITY.parquet, whose name changes with the shard (or its side-car)."""
    names = []
    for tar in tars:
        states = [tar.stat()] + ([(captions / f"{tar.stem}.parquet").stat()] if captions else [])
        names.append(f"{tar.stem}-{digest([[s.st_size, s.st_mtime_ns] for s in states])[:12]}.parquet")
    return [folder / name for name in names]


def _measure(
    tars: list[Path],
    files: list[Path],
    function: Any,
    arguments: tuple[Any, ...],
    config: FilterConfig,
    what: str,
    start: tuple[Any, tuple[Any, ...]] = (None, ()),
) -> str:
    """Run ``function(tar, file, *arguments)`` for each shard whose file is missing; return SQL of all the files."""
    files[0].parent.mkdir(parents=True, exist_ok=True)
    todo = [(tar, file, *arguments) for tar, file in zip(tars, files, strict=True) if not file.exists()]
    run_blocks(
        function,
        todo,
        config.processes,
        what=what,
        unit="images",
        total=sum(_rows_of(Path(config.captions) / f"{tar.stem}.parquet") for tar, *_ in todo),
        start=start[0],
        start_arguments=start[1],
    )
    source = duckdb_io.parquet(files, duckdb_io.WITH_FILE)
    shard = f"split_part({duckdb_io.FILE_STEM}, '-', 1)"
    return f"(SELECT {shard} AS shard, * EXCLUDE (_file_) FROM {source})"


def _rows_of(sidecar: Path) -> int:
    with reading(sidecar):
        return int(pq.read_metadata(sidecar).num_rows)


def shard_images(tar: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (key, encoded image) of every sample of a shard, in its order."""
    index = shard_index(tar)
    file = os.open(tar, os.O_RDONLY)
    try:
        for key, n in index.images().items():
            yield key, os.pread(file, index.sizes[n], index.offsets[n])
    finally:
        os.close(file)


def hash_shard(tar: Path, file: Path) -> int:
    """Write the perceptual hash (64 bits, int64) of each image of a shard; return how many."""
    import imagehash

    from filip.data.loading.images import decode
    from filip.rgb import UNDECODABLE

    keys, hashes = [], []
    for key, data in shard_images(tar):
        try:
            # 8 x 8 lowest frequencies of a 32 x 32 picture, each above or below their median
            bits = imagehash.phash(imagehash.Image.fromarray(decode(data))).hash.flatten()
        except UNDECODABLE:
            continue
        keys.append(key)
        hashes.append(int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True))
    with replacing(file) as part:
        pq.write_table(
            pa.table({"key": pa.array(keys, pa.string()), "phash": pa.array(hashes, pa.int64())}), part
        )
    return len(keys)


def near_duplicates(con: duckdb.DuckDBPyConnection, hashes: str, distance: int, path: Path) -> int:
    """Write (shard, key, like_shard, like_key) of each image that resembles an earlier one; return how many.

    Two hashes that differ in at most d bits agree in at least t of d + t bands of bits: for each choice of t bands,
    only the images that share all of them are compared. t grows with the number of hashes, so that hardly any that are
    unlike share a choice (for d = 3: 10 choices of 26 bits at 10 million, 20 of 32 bits at 340 million).
    """
    con.execute(
        f"CREATE OR REPLACE TEMP TABLE seen AS SELECT phash, min(shard || '/' || key) AS first FROM {hashes} "
        "GROUP BY phash"
    )
    con.execute("CREATE OR REPLACE TEMP TABLE likes (phash BIGINT, other BIGINT)")
    distinct = con.sql("SELECT count(*) FROM seen").fetchall()[0][0]
    for masks in _band_choices(distinct, distance) if distance else []:
        con.execute(
            f"""INSERT INTO likes SELECT a.phash, b.phash FROM seen a JOIN seen b
                ON a.phash & {masks} = b.phash & {masks} AND a.phash <> b.phash
                WHERE bit_count(xor(a.phash, b.phash)) <= {distance}"""
        )
    return duckdb_io.write_parquet(
        con,
        f"""WITH nearest AS (
                SELECT l.phash, min(s.first) AS like_first FROM likes l JOIN seen s ON s.phash = l.other GROUP BY 1)
            SELECT shard, key, split_part(like_first, '/', 1) AS like_shard,
                substr(like_first, strpos(like_first, '/') + 1) AS like_key FROM (
                SELECT h.shard, h.key, least(s.first, coalesce(n.like_first, s.first)) AS like_first
                FROM {hashes} h JOIN seen s USING (phash) LEFT JOIN nearest n USING (phash))
            WHERE like_first <> shard || '/' || key ORDER BY shard, key""",
        path,
        "near-duplicates",
    )


def _band_choices(hashes: int, distance: int) -> list[int]:
    """Return bit masks: two hashes that differ in at most ``distance`` bits are equal under one of them."""

    def cost(agreeing: int) -> float:
        bands = distance + agreeing
        shared = HASH_BITS * agreeing / bands  # bits
        return math.comb(bands, agreeing) * (hashes + hashes**2 / 2 ** (shared + 1))

    agreeing = min(range(1, 5), key=cost)
    edges = [HASH_BITS * n // (distance + agreeing) for n in range(distance + agreeing + 1)]
    bands = [((1 << (high - low)) - 1) << low for low, high in pairwise(edges)]
    return [_signed(sum(chosen)) for chosen in combinations(bands, agreeing)]


def _signed(bits: int) -> int:
    return bits - (1 << HASH_BITS) if bits >> (HASH_BITS - 1) else bits


def start_scorer(loader: str, model: str) -> None:
    """Load the model in this process; ``loader`` is the dotted name of the function that loads it."""
    import torch

    torch.set_num_threads(1)  # the processes share the cores
    _scorers[:] = [get_method(loader)(model, device="auto")]


def score_shard(tar: Path, file: Path, captions: str, batch: int) -> int:
    """Write each pair's similarity of the image and its original caption, the mean of both directions."""
    import torch

    from filip.data.preprocessing import eval_transform, normalize
    from filip.rgb import UNDECODABLE

    scorer = _scorers[0]
    make = eval_transform(scorer.image_size)
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
    with replacing(file) as part:
        pq.write_table(
            pa.table({"key": pa.array(keys, pa.string()), "score": pa.array(scores, pa.float64())}), part
        )
    return len(keys)


def _write(tars: list[Path], captions: Path, out: Path, dropped: pa.RecordBatchReader) -> dict[str, int]:
    """Write the side-cars without the rows in ``dropped`` (shard, key, reason), which has the order of the shards."""
    counts = {"in": 0, "near_duplicate": 0, "low_score": 0}
    stream = (row for batch in dropped for row in batch.to_pylist())
    shards = groupby(stream, key=itemgetter("shard"))
    name, found = next(shards, (None, iter(())))
    for tar in sorted(tars, key=lambda tar: tar.stem):
        reasons = {}
        if name == tar.stem:
            reasons = {row["key"]: row["reason"] for row in found}
            name, found = next(shards, (None, iter(())))
        rows = read_sidecar(captions / f"{tar.stem}.parquet")
        kept = [row for row in rows if row["key"] not in reasons]
        for row in rows:
            if row["key"] in reasons:
                counts[reasons[row["key"]]] += 1
        counts["in"] += len(rows)
        write_sidecar(out / f"{tar.stem}.parquet", kept)
    return counts


if __name__ == "__main__":
    run_command(main, FilterConfig)
