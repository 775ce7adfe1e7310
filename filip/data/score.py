"""Score the pairs of finished shards, in columns of new side-cars, and select those to train on.

    python -m filip.data.score shards=SHARDS captions=CAPTIONS out=SCORED \\
        model=open_clip:ViT-B-32:openai test_sets=[imagenet] root=BENCHMARKS \\
        keep=["similarity > 0.25","near_distance > 3","test_distance > 6"]

Columns: ``similarity`` of image and caption by the model (-1 to 1), ``phash`` (a perceptual hash of 64 bits),
``near_distance`` (bits in which it differs from the nearest image before it), ``near`` (which one that is),
``test_distance`` and ``test`` (the same for the images of benchmarks). A distance above 6 is 64. What takes long,
reading each image, is kept in ``OUT/_measured`` shard by shard, so that other conditions take seconds.

Parts measure their shards; started again, when all shards are measured, they search their share of the copies.
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
from PIL import Image, ImageChops, ImageOps

from filip.cli.command import MISSING, option, run_command
from filip.cli.extras import how_to_install
from filip.common.errors import UserError, counted
from filip.common.files import digest, file_state, locked, replacing
from filip.common.progress import say
from filip.common.worker_pool import run_blocks
from filip.data.cards import load_source
from filip.data.funnel import Fragment, write_fragment
from filip.data.lists import duckdb_io
from filip.data.lists.columns import where_condition
from filip.data.remote_tars import state_of
from filip.data.shard_index import shard_images
from filip.data.sidecar import read_sidecar, write_sidecar
from filip.data.stage import PART, Part, parse_part, share, work_folder
from filip.images.rgb import UNDECODABLE
from filip.runs.saved_files import weights_of

ANY_DISTANCE = 64  # "further than was looked for"
SIDE = 96  # pixels of the shorter side that are enough for a hash
PLAIN = 24  # of 255: a border may differ by so much from its corner, as JPEG makes it
NEAR = 6  # bits up to which copies are told; unlike pictures differ in about 32
# Of nine bands of bits, six differing bits leave three alone.
BANDS = [((1 << (64 * (n + 1) // 9)) - 1) ^ ((1 << (64 * n // 9)) - 1) for n in range(9)]
MASKS = [sum(bands) - (1 << 64 if BANDS[-1] in bands else 0) for bands in combinations(BANDS, 3)]  # as signed integers
BATCH = 64  # pairs at a time through the model
FORMS = 2  # version of picture_hashes: what an earlier one measured is measured again
SCORES = {"similarity": "FLOAT", "phash": "BIGINT", "near_distance": "TINYINT", "near": "VARCHAR"}
SCORES |= {"test_distance": "TINYINT", "test": "VARCHAR"}  # the new columns and their types in DuckDB
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
    source: str | None = option(None, "name or path of the card, which the funnel names")
    funnel: str | None = option(None, "funnel fragment to write", writes="file")
    part: str | None = option(None, PART)


def main(config: ScoreConfig) -> None:
    """Score pairs by a model, and look for copies of them and of benchmarks: new columns of the side-cars."""
    counts = score(config)
    if counts is None:
        return
    kept = counts.pop("kept")
    print(f"{config.out}: {kept:,} pairs kept; {counted(counts)}")
    if config.funnel:
        source = load_source(config.source).name if config.source else Path(config.captions).parent.name
        dropped = {condition: counts[condition] for condition in config.keep}
        write_fragment(config.funnel, Fragment("score", source, kept + sum(dropped.values()), kept, dropped, "images"))


def score(config: ScoreConfig) -> Counter[str] | None:
    """Write the scored side-cars; count kept pairs, copies, and dropped pairs by the first condition not met.

    A part returns None.
    Raises UserError when shards, side-cars or benchmarks are missing, or for a condition that cannot be read.
    """
    part, out = parse_part(config.part), Path(config.out).resolve()
    tars, sidecars = _shards(config)
    model = config.model and weights_of(config.model)
    states = [file_state(sidecar) for sidecar in sidecars]
    measured = [
        out / "_measured" / f"{tar.stem}-{digest([state_of(tar), model and state, model, FORMS])[:12]}.parquet"
        for tar, state in zip(tars, states, strict=True)
    ]
    identity = [states, [file.name for file in measured]]
    folder = work_folder(out, part, identity, config.processes, config.memory)
    with folder as (work, con), duckdb_io.plain_errors(con, "score"):
        captions = con.sql(f"DESCRIBE FROM {duckdb_io.parquet(sidecars[0], duckdb_io.ROW)}").fetchall()
        types = {row[0]: row[1] for row in captions} | SCORES
        conditions = [where_condition(con, text, types, is_text=False, setting="keep") for text in config.keep]
        with locked(work / "plan.lock"):
            others = {"near": "images", "test": _test_images(config, out / "_measured")}
        todo = [n for n in share(range(len(tars)), part) if not measured[n].exists()]
        blocks = [(tars[n], sidecars[n], measured[n]) for n in todo]
        shown: Any = {"what": "scores", "unit": "shards", "total": len(blocks)}
        shown |= {"start": _start_scorer, "start_arguments": (config.model,)}
        run_blocks(_measure, blocks, config.processes, **shown)
        if not all(file.exists() for file in measured):
            say("score: when all other parts have measured, start this part again to search for copies")
            return None
        # an image that the side-cars leave out must not make another one a duplicate
        con.execute(
            f"""CREATE TEMP TABLE images AS SELECT shard, key, phash, forms, similarity, shard || '/' || key AS id
                FROM (SELECT split_part({duckdb_io.FILE_STEM}, '-', 1) AS shard, *
                    FROM {duckdb_io.parquet(measured, duckdb_io.WITH_FILE)}) SEMI JOIN
                    (SELECT {duckdb_io.FILE_STEM} AS shard, key FROM {duckdb_io.parquet(sidecars, duckdb_io.WITH_FILE)})
                    USING (shard, key)"""
        )
        alike = {name: _alike(con, relation, work, part) for name, relation in others.items()}
        if part is not None:
            return None
        found = {name: _nearest(con, relation, name, alike[name]) for name, relation in others.items()}
        counts = Counter({f"copies ({name})": copies for name, copies in found.items()})
        first = " ".join(f"WHEN NOT {sql} THEN {number}" for number, sql in enumerate(conditions))
        failed = f"CASE {first} END" if conditions else "NULL"
        for sidecar in sidecars:
            scored = _with_scores(sidecar)
            table = con.sql(f"SELECT *, {failed} AS _failed FROM ({scored}) ORDER BY file_row_number").to_arrow_table()
            counts.update(config.keep[number] for number in table["_failed"].drop_null().to_pylist())
            table = table.filter(table["_failed"].is_null()).drop_columns(["_failed", "file_row_number"])
            write_sidecar(out / sidecar.name, table)
            counts["kept"] += len(table)
    for path in {*out.glob("*.parquet")} - {out / sidecar.name for sidecar in sidecars}:
        path.unlink()  # its shard no longer exists
    if config.keep and not counts["kept"]:
        raise UserError(f"the conditions leave nothing of {config.captions}: {counted(counts)}")
    return counts


def _shards(config: ScoreConfig) -> tuple[list[Path], list[Path]]:
    """Return the tars and their side-cars."""
    if Path(config.out).resolve() == Path(config.captions).resolve():
        raise UserError(f"out={config.out} is the folder of the side-cars without scores: give another one")
    try:
        import imagehash  # noqa: F401 (the workers use it)
    except ImportError as error:
        raise UserError(f"perceptual hashes need imagehash: {how_to_install('data')}") from error
    tars = sorted(Path(config.shards).glob("*.tar"))
    if not tars:
        raise UserError(f"no *.tar in {config.shards}: give the folder that `filip data download` filled")
    sidecars = [Path(config.captions) / f"{tar.stem}.parquet" for tar in tars]
    if missing := [sidecar.stem for sidecar in sidecars if not sidecar.exists()]:
        raise UserError(f"no side-car of shard {missing[0]} in {config.captions}: run filip.data.translate first")
    return tars, sidecars


def _start_scorer(model: str | None) -> None:
    """Load the model in this process."""
    if model is not None:
        import torch

        from filip.eval.scorer import load_scorer

        torch.set_num_threads(1)  # the processes share the cores
        _scorers[:] = [load_scorer(model, device="auto")]


def _measure(tar: Path, sidecar: Path, file: Path) -> int:
    """Write the hash (int64) of each image of a shard, and its similarity to its original caption; return 1.

    Similarity is null without model or caption.
    """
    from filip.loading.augment import decode

    texts = {row["key"]: row["captions"][0] for row in read_sidecar(sidecar)}
    hashes: dict[str, list[int]] = {}
    similarities: dict[str, float] = {}
    waiting: dict[str, bytes] = {}
    for key, data in shard_images(tar):
        try:
            hashes[key] = picture_hashes(decode(data))
        except UNDECODABLE:
            continue
        if _scorers and key in texts:
            waiting[key] = data
        if len(waiting) == BATCH:
            similarities |= _similarities(waiting, texts)
            waiting.clear()
    similarities |= _similarities(waiting, texts) if waiting else {}
    values = pa.array([similarities.get(key) for key in hashes], pa.float32())
    with replacing(file) as part:
        pq.write_table(_hash_table(hashes).append_column("similarity", values), part)
    return 1


def _hash_table(hashes: dict[str, list[int]]) -> pa.Table:
    """Return a table of keys, the hash of each picture, and its further forms' hashes."""
    first, others = [each[0] for each in hashes.values()], [each[1:] for each in hashes.values()]
    arrays = (pa.array([*hashes], pa.string()), pa.array(first, pa.int64()), pa.array(others, pa.list_(pa.int64())))
    return pa.table(dict(zip(("key", "phash", "forms"), arrays, strict=True)))


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


def picture_hashes(image: Any) -> list[int]:
    """Return the perceptual hash of a picture, then of its mirror image, of its inside, and without a plain border.

    The inside is without 5 and 10 % at each side. Each hash has 64 bits, as a signed integer: pictures that look alike
    differ in few of them. image: PIL or pixels.
    """
    import imagehash

    def phash(form: Any) -> int:
        # 8 x 8 lowest frequencies of a 32 x 32 picture, each above or below their median
        bits = imagehash.phash(form).hash.flatten()
        return int.from_bytes(np.packbits(bits).tobytes(), "big", signed=True)

    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image.convert("RGB")
    picture = picture.reduce(max(1, min(picture.size) // SIDE))  # in half the time
    width, height = picture.size
    forms = [picture, ImageOps.mirror(picture)]
    for cut in (0.05, 0.1):
        left, top, right, bottom = (round(at * side) for at in (cut, 1 - cut) for side in picture.size)
        forms.append(picture.crop((left, top, right, bottom)))
    plain = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    box = ImageChops.difference(picture, plain).convert("L").point(lambda value: 255 * (value > PLAIN)).getbbox()
    if box not in (None, (0, 0, width, height)) and 9 * (box[2] - box[0]) * (box[3] - box[1]) > width * height:
        forms.append(picture.crop(box))
    return [phash(form) for form in forms]


def _test_images(config: ScoreConfig, folder: Path) -> str:
    """Return SQL of the images of the benchmarks, id and phash; hashes of a set that has not changed are kept."""
    from filip.eval.cards import load_cards
    from filip.eval.formats import open_set

    relations = ["SELECT '' AS id, CAST(0 AS BIGINT) AS phash, CAST([] AS BIGINT[]) AS forms WHERE false"]
    for name in config.test_sets:
        (card,) = load_cards([name])
        place = Path(config.root) / card.path
        states = [[str(file), file_state(file)] for file in sorted(place.rglob("*") if place.is_dir() else [place])]
        file = folder / "test_sets" / f"{Path(name).stem}-{digest([str(place.resolve()), states, FORMS])[:16]}.parquet"
        if not file.exists():
            data = open_set(card, config.root)
            samples: Iterable[Any] = (data.read(n)[0] for n in range(len(data)))
            hashes = {sample.key: picture_hashes(sample.image) for sample in samples if sample is not None}
            with replacing(file) as part:
                pq.write_table(_hash_table(hashes), part)
        named = duckdb_io.sql_literal(f"!{Path(name).stem}/")  # before all numbers
        relations.append(f"SELECT {named} || key AS id, phash, forms FROM {duckdb_io.parquet(file)}")
    return f"({' UNION ALL '.join(relations)})"


def _alike(con: duckdb.DuckDBPyConnection, others: str, work: Path, part: Part) -> list[Path]:
    """Write pairs of hashes (phash of an image, other, distance of at most NEAR bits), by mask; return all files.

    Two hashes that differ in at most NEAR bits are equal under one of MASKS, so only the images that are alike under
    one are compared: a picture with each form of the other.
    """
    files = [work / f"{digest(others)[:12]}-{number:02d}.parquet" for number in range(len(MASKS))]
    todo = [number for number in share(range(len(MASKS)), part) if not files[number].exists()]
    for table, relation in (("asked", "images"), ("others", others)) if todo else ():
        con.execute(
            f"""CREATE OR REPLACE TEMP TABLE {table} AS SELECT DISTINCT phash, unnest([phash] || forms) AS form
                FROM {relation}"""
        )
    for number in todo:
        query = f"""SELECT a.phash, b.phash AS other, bit_count(xor(a.form, b.form)) AS distance
            FROM asked a JOIN others b ON a.form & {MASKS[number]} = b.form & {MASKS[number]} AND a.phash <> b.phash
            WHERE (a.form = a.phash OR b.form = b.phash) AND bit_count(xor(a.form, b.form)) <= {NEAR}"""
        duckdb_io.write_parquet(con, query, files[number], "score: copies")
    return files


def _nearest(con: duckdb.DuckDBPyConnection, others: str, name: str, alike: list[Path]) -> int:
    """Make the table ``name``, of the nearest of the others before each row of ``images``; return its rows.

    others: SQL of (id, phash, forms); an image may be among them. Ids are texts, and only others with a lower id count:
    of two copies the first stays. Columns: shard, key, distance and other (its id).
    """
    con.execute(
        f"""CREATE TEMP TABLE {name} AS
            SELECT shard, key, CAST(min(l.distance) AS TINYINT) AS distance,
                ltrim(arg_min(s.first, struct_pack(d := l.distance, f := s.first)), '!') AS other
            FROM images i JOIN (SELECT DISTINCT phash, phash AS other, 0 AS distance FROM images
                UNION ALL FROM {duckdb_io.parquet(alike)}) l USING (phash)
            JOIN (SELECT phash, min(id) AS first FROM {others} GROUP BY phash) s ON s.phash = l.other
            WHERE s.first < i.id GROUP BY shard, key ORDER BY shard, key"""
    )
    return int(con.sql(f"SELECT count(*) FROM {name}").fetchall()[0][0])


def _with_scores(sidecar: Path) -> str:
    """Return SQL of a side-car with its scores, and with the number of each row."""
    of_shard = {name: f"(FROM {name} WHERE shard = '{sidecar.stem}')" for name in ("images", "near", "test")}
    return f"""SELECT s.*, similarity, phash,
            coalesce(n.distance, {ANY_DISTANCE})::TINYINT AS near_distance, n.other AS near,
            coalesce(t.distance, {ANY_DISTANCE})::TINYINT AS test_distance, t.other AS test
        FROM {duckdb_io.parquet(sidecar, duckdb_io.ROW)} s LEFT JOIN {of_shard["images"]} USING (key)
        LEFT JOIN {of_shard["near"]} n USING (key) LEFT JOIN {of_shard["test"]} t USING (key)"""


if __name__ == "__main__":
    run_command(main, ScoreConfig)
