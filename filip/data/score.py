"""Score the pairs of finished shards, in columns of new side-cars, and select those to train on.

    python -m filip.data.score shards=SHARDS captions=CAPTIONS out=SCORED \\
        model=open_clip:ViT-B-32:openai test_sets=[imagenet] root=BENCHMARKS \\
        keep=["similarity > 0.25","near_distance > 3","test_distance > 6"]

Columns: ``similarity`` of image and caption by the model (-1 to 1), ``phash`` (a perceptual hash of 64 bits),
``near_distance`` (bits in which it differs from the nearest image before it), ``near`` (which one that is),
``test_distance`` and ``test`` (the same for the images of benchmarks). A distance above 6 is 64. What takes long,
reading each image, is kept in ``OUT/_measured`` shard by shard, so that other conditions take seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from filip.cli.command import MISSING, option, run_command
from filip.cli.extras import how_to_install
from filip.common.errors import UserError, counted
from filip.common.files import digest, file_state, replacing, sha256_of
from filip.common.worker_pool import run_blocks
from filip.data.lists import duckdb_io
from filip.data.lists.columns import where_condition
from filip.data.lists.parquet_rows import reading
from filip.data.remote_tars import state_of
from filip.data.shard_index import shard_images
from filip.data.sidecar import read_sidecar, write_sidecar
from filip.data.stage import work_folder
from filip.images.rgb import UNDECODABLE

ANY_DISTANCE = 64  # "further than was looked for"
NEAR = 6  # bits up to which copies are told; unlike pictures differ in about 32
# Of nine bands of bits, six differing bits leave three alone.
BANDS = [((1 << (64 * (n + 1) // 9)) - 1) ^ ((1 << (64 * n // 9)) - 1) for n in range(9)]
MASKS = [sum(bands) - (1 << 64 if BANDS[-1] in bands else 0) for bands in combinations(BANDS, 3)]  # as signed integers
BATCH = 64  # pairs at a time through the model
_scorers: list[Any] = []  # loaded once in each worker process


@dataclass
class ScoreConfig:
    shards: str = option(MISSING, "folder of the shards")
    captions: str = option(MISSING, "folder of their side-cars")
    out: str = option(MISSING, "folder of the side-cars with scores", writes="folder")
    model: str | None = option(None, "of the similarity: .safetensors, a run folder, open_clip:ARCHITECTURE:TAG")
    test_sets: list[str] = option([], "benchmark cards (names or paths) whose images are looked for")
    root: str = option("results/benchmarks", "folder that holds the benchmarks")
    keep: list[str] = option([], 'SQL conditions that a pair has to meet, e.g. keep=["similarity > 0.25"]')
    processes: int = option(2, "processes that measure", at_least=1)
    memory: str = option("1GB", "DuckDB memory; the rest spills to disk next to `out`")


def main(config: ScoreConfig) -> None:
    """Score pairs by a model, and look for copies of them and of benchmarks: new columns of the side-cars."""
    counts = score(config)
    print(f"{config.out}: {counts.pop('kept'):,} pairs kept; {counted(counts)}")


def score(config: ScoreConfig) -> Counter[str]:
    """Write the scored side-cars; count the pairs that are kept, that are copies, and by the first condition not met.

    Raises UserError when shards, side-cars or benchmarks are missing, or for a condition that cannot be read.
    """
    tars, out = _tars(config), Path(config.out).resolve()
    measured = _measured(tars, config, out / "_measured")
    with work_folder(out, config.processes, config.memory) as (_, con), duckdb_io.plain_errors(con, "score"):
        files = duckdb_io.parquet(measured, duckdb_io.WITH_FILE)
        sidecars = duckdb_io.parquet([_sidecar(config, tar) for tar in tars], duckdb_io.WITH_FILE)
        # an image that the side-cars leave out must not make another one a duplicate
        con.execute(
            f"""CREATE TEMP TABLE images AS SELECT shard, key, phash, similarity, shard || '/' || key AS id
                FROM (SELECT split_part({duckdb_io.FILE_STEM}, '-', 1) AS shard, * FROM {files}) SEMI JOIN
                    (SELECT {duckdb_io.FILE_STEM} AS shard, key FROM {sidecars}) USING (shard, key)"""
        )
        others = {"near": "images", "test": _test_images(config, out / "_measured")}
        counts = Counter({f"copies ({name})": _nearest(con, relation, name) for name, relation in others.items()})
        queries = {tar.stem: _with_scores(tar.stem, _sidecar(config, tar)) for tar in tars}
        types = {row[0]: row[1] for row in con.sql(f"DESCRIBE {queries[tars[0].stem]}").fetchall()}
        conditions = [where_condition(con, text, types, is_text=False, setting="keep") for text in config.keep]
        first = " ".join(f"WHEN NOT {sql} THEN {number}" for number, sql in enumerate(conditions))
        for shard, query in queries.items():
            failed = f"CASE {first} END" if conditions else "NULL"
            table = con.sql(f"SELECT *, {failed} AS _failed FROM ({query}) ORDER BY file_row_number").to_arrow_table()
            counts.update(config.keep[number] for number in table["_failed"].drop_null().to_pylist())
            table = table.filter(table["_failed"].is_null()).drop_columns(["_failed", "file_row_number"])
            write_sidecar(out / f"{shard}.parquet", table)
            counts["kept"] += len(table)
    for path in {*out.glob("*.parquet")} - {out / f"{shard}.parquet" for shard in queries}:
        path.unlink()  # its shard no longer exists
    if config.keep and not counts["kept"]:
        raise UserError(f"the conditions leave nothing of {config.captions}: {counted(counts)}")
    return counts


def _tars(config: ScoreConfig) -> list[Path]:
    if Path(config.out).resolve() == Path(config.captions).resolve():
        raise UserError(f"out={config.out} is the folder of the side-cars without scores: give another one")
    try:
        import imagehash  # noqa: F401 (the workers use it)
    except ImportError as error:
        raise UserError(f"perceptual hashes need imagehash: {how_to_install('data')}") from error
    tars = sorted(Path(config.shards).glob("*.tar"))
    if not tars:
        raise UserError(f"no *.tar in {config.shards}: give the folder that `filip data download` filled")
    if missing := [tar.stem for tar in tars if not _sidecar(config, tar).exists()]:
        raise UserError(f"no side-car of shard {missing[0]} in {config.captions}: run filip.data.translate first")
    return tars


def _sidecar(config: ScoreConfig, tar: Path) -> Path:
    return Path(config.captions) / f"{tar.stem}.parquet"


def _measured(tars: list[Path], config: ScoreConfig, folder: Path) -> list[Path]:
    """Return a file per shard with the hash and the similarity of each image: its name changes with the shard."""
    folder.mkdir(parents=True, exist_ok=True)
    model = config.model and (sha256_of(config.model) if Path(config.model).is_file() else config.model)
    states = [[state_of(tar), model and file_state(_sidecar(config, tar)), model] for tar in tars]
    files = [folder / f"{tar.stem}-{digest(state)[:12]}.parquet" for tar, state in zip(tars, states, strict=True)]
    todo = [(tar, _sidecar(config, tar), file) for tar, file in zip(tars, files, strict=True) if not file.exists()]
    total = 0
    for _, sidecar, _ in todo:
        with reading(sidecar):
            total += pq.read_metadata(sidecar).num_rows
    run_blocks(
        _measure,
        todo,
        config.processes,
        what="scores",
        unit="images",
        total=total,
        start=_start_scorer,
        start_arguments=(config.model,),
    )
    return files


def _start_scorer(model: str | None) -> None:
    """Load the model in this process."""
    if model is not None:
        import torch

        from filip.eval.scorer import load_scorer

        torch.set_num_threads(1)  # the processes share the cores
        _scorers[:] = [load_scorer(model, device="auto")]


def _measure(tar: Path, sidecar: Path, file: Path) -> int:
    """Write the hash (int64) of each image of a shard, and its similarity to its original caption, as far as known."""
    from filip.loading.transforms import decode

    texts = {row["key"]: row["captions"][0] for row in read_sidecar(sidecar)}
    hashes: dict[str, int] = {}
    similarities: dict[str, float] = {}
    waiting: dict[str, bytes] = {}
    for key, data in shard_images(tar):
        try:
            hashes[key] = perceptual_hash(decode(data))
        except UNDECODABLE:
            continue
        if _scorers and key in texts:
            waiting[key] = data
        if len(waiting) == BATCH:
            similarities |= _similarities(waiting, texts)
            waiting.clear()
    similarities |= _similarities(waiting, texts) if waiting else {}
    values = pa.array([similarities.get(key) for key in hashes], pa.float32())
    table = {"key": pa.array([*hashes], pa.string()), "phash": pa.array([*hashes.values()], pa.int64())}
    with replacing(file) as part:
        pq.write_table(pa.table({**table, "similarity": values}), part)
    return len(hashes)


def _similarities(images: dict[str, bytes], texts: dict[str, str]) -> dict[str, float]:
    """Return the similarity of each image and its caption, the mean of both directions."""
    import torch

    from filip.images.eval_transform import EvalTransform, normalize

    scorer = _scorers[0]
    make = EvalTransform(scorer.image_size)
    with torch.inference_mode():
        encoded = scorer.encode_images(torch.stack([normalize(make.pixels(data)) for data in images.values()]))
        both = scorer.similarity(encoded, scorer.encode_texts([texts[key] for key in images]))
    return dict(zip(images, ((both.i2t.diagonal() + both.t2i.diagonal()) / 2).tolist(), strict=True))


def perceptual_hash(image: Any) -> int:
    """Return 64 bits as a signed integer: pictures that look alike differ in few of them. image: PIL or pixels."""
    import imagehash

    picture = imagehash.Image.fromarray(image) if isinstance(image, np.ndarray) else image
    # 8 x 8 lowest frequencies of a 32 x 32 picture, each above or below their median
    bits = imagehash.phash(picture).hash.flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True)


def _test_images(config: ScoreConfig, folder: Path) -> str:
    """Return SQL of the images of the benchmarks, id and phash; hashes of a set that has not changed are kept."""
    from filip.eval.cards import load_cards
    from filip.eval.formats import open_set

    relations = ["SELECT '' AS id, CAST(0 AS BIGINT) AS phash WHERE false"]
    for name in config.test_sets:
        (card,) = load_cards([name])
        place = Path(config.root) / card.path
        states = [[str(file), file_state(file)] for file in sorted(place.rglob("*") if place.is_dir() else [place])]
        file = folder / "test_sets" / f"{Path(name).stem}-{digest([str(place.resolve()), states])[:16]}.parquet"
        if not file.exists():
            data = open_set(card, config.root)
            samples: Iterable[Any] = (data.read(n)[0] for n in range(len(data)))
            hashes = {sample.key: perceptual_hash(sample.image) for sample in samples if sample is not None}
            columns = {"key": pa.array([*hashes], pa.string()), "phash": pa.array([*hashes.values()], pa.int64())}
            with replacing(file) as part:
                pq.write_table(pa.table(columns), part)
        named = duckdb_io.sql_literal(f"!{Path(name).stem}/")  # before all numbers
        relations.append(f"SELECT {named} || key AS id, phash FROM {duckdb_io.parquet(file)}")
    return f"({' UNION ALL '.join(relations)})"


def _nearest(con: duckdb.DuckDBPyConnection, others: str, name: str) -> int:
    """Make the table ``name``, of the nearest of the others before each row of ``images``; return its rows.

    others: SQL of (id, phash); an image may be among them. Ids are texts, and only others with a lower id count: of two
    copies the first stays. Columns: shard, key, distance (of at most NEAR bits) and other (its id). Two hashes that
    differ in at most NEAR bits are equal under one of MASKS, so only the images that are alike under one are compared.
    """
    con.execute("CREATE OR REPLACE TEMP TABLE asked AS SELECT DISTINCT phash FROM images")
    con.execute(f"CREATE OR REPLACE TEMP TABLE seen AS SELECT phash, min(id) AS first FROM {others} GROUP BY phash")
    con.execute("CREATE OR REPLACE TEMP TABLE likes AS SELECT phash, phash AS other, 0 AS distance FROM asked")
    for mask in MASKS:
        con.execute(
            f"""INSERT INTO likes SELECT a.phash, b.phash, bit_count(xor(a.phash, b.phash)) FROM asked a JOIN seen b
                ON a.phash & {mask} = b.phash & {mask} AND a.phash <> b.phash
                WHERE bit_count(xor(a.phash, b.phash)) <= {NEAR}"""
        )
    con.execute(
        f"""CREATE TEMP TABLE {name} AS
            SELECT shard, key, CAST(min(l.distance) AS TINYINT) AS distance,
                ltrim(arg_min(s.first, struct_pack(d := l.distance, f := s.first)), '!') AS other
            FROM images i JOIN likes l USING (phash) JOIN seen s ON s.phash = l.other WHERE s.first < i.id
            GROUP BY shard, key ORDER BY shard, key"""
    )
    return int(con.sql(f"SELECT count(*) FROM {name}").fetchall()[0][0])


def _with_scores(shard: str, sidecar: Path) -> str:
    """Return SQL of a side-car with its scores, and with the number of each row."""
    of_shard = {name: f"(FROM {name} WHERE shard = '{shard}')" for name in ("images", "near", "test")}
    return f"""SELECT s.*, similarity, phash,
            coalesce(n.distance, {ANY_DISTANCE})::TINYINT AS near_distance, n.other AS near,
            coalesce(t.distance, {ANY_DISTANCE})::TINYINT AS test_distance, t.other AS test
        FROM {duckdb_io.parquet(sidecar, duckdb_io.ROW)} s LEFT JOIN {of_shard["images"]} USING (key)
        LEFT JOIN {of_shard["near"]} n USING (key) LEFT JOIN {of_shard["test"]} t USING (key)"""


if __name__ == "__main__":
    run_command(main, ScoreConfig)
