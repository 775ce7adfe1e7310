"""Score the pairs of finished shards: columns in their side-cars, by which `filip data select` then chooses.

    python -m filip.data.score source=cc12m shards=SHARDS captions=CAPTIONS out=SCORED \\
        model=open_clip:ViT-B-32:openai against=[scored/cc3m] test_sets=[imagenet] root=BENCHMARKS

Columns: ``similarity`` of image and caption by the model (-1 to 1), ``phash`` (a perceptual hash of 64 bits),
``near_distance`` (bits in which it differs from the nearest image before it, here or in a source of ``against``),
``near`` (which one that is), ``test_distance`` and ``test`` (the same for the images of benchmarks). A distance above
``max_distance`` is 64. What takes long, reading each image, is kept in ``cache`` shard by shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filip.cli.command import MISSING, option, run_command
from filip.cli.extras import how_to_install
from filip.common.errors import UserError
from filip.common.files import digest, file_state, locked, sha256_of, write_json
from filip.common.worker_pool import run_blocks
from filip.data.captions.sidecar_tables import rows_by_shard
from filip.data.cards import load_source
from filip.data.lists import duckdb_io
from filip.data.lists.parquet_rows import reading, whole_file
from filip.data.scoring import (
    HASH_BITS,
    hash_shard,
    hash_test_set,
    nearest,
    score_shard,
    start_scorer,
    state_of_test_set,
)
from filip.data.sidecar import write_sidecar
from filip.data.stage import ByShard

FURTHEST = HASH_BITS // 4 - 1  # bits; unlike pictures differ in about 32
ANY_DISTANCE = HASH_BITS  # "further than was looked for"
Paths = list[str]


@dataclass
class ScoreConfig:
    source: str = option(MISSING, "source card (name or path)")
    shards: str = option(MISSING, "folder of the shards")
    captions: str = option(MISSING, "folder of their side-cars")
    out: str = option(MISSING, "folder of the side-cars with scores", writes="folder")
    cache: str | None = option(None, "folder of what is measured by shard; default: OUT/_measured", writes="folder")
    summary: str | None = option(None, "quantiles of the scores to write, JSON", writes="file")
    model: str | None = option(None, "of the similarity: .safetensors, a run folder, open_clip:ARCHITECTURE:TAG")
    max_distance: int = option(6, "bits of 64 up to which near-duplicates are told", at_least=0, at_most=FURTHEST)
    against: Paths = option([], "folders of other sources' scored side-cars: their images come before these")
    test_sets: Paths = option([], "benchmark cards (names or paths) whose images are looked for")
    root: str = option("results/benchmarks", "folder that holds the benchmarks")
    batch: int = option(64, "pairs per batch of the similarity", at_least=1)
    processes: int = option(2, "processes that measure", at_least=1)
    threads: int = option(2, "DuckDB threads", at_least=1)
    memory: str = option("1GB", "DuckDB memory; the rest spills to disk in the cache")


def main(config: ScoreConfig) -> None:
    """Score pairs by a model, and look for copies among sources and benchmarks: new columns of the side-cars."""
    summary = score(config)
    if config.summary:
        write_json(config.summary, summary)
    print(f"{config.out}: {summary['pairs']:,} pairs scored")
    for name in ("near", "test"):
        counts = summary[f"{name}_distance"]
        listed = ", ".join(f"{count:,} at {bits}" for bits, count in counts.items()) or "none"
        print(f"  {name:<5} copies by differing bits (of {HASH_BITS}): {listed}")
    if summary["similarity"]:
        shown = ", ".join(f"{share} {value:.3f}" for share, value in summary["similarity"].items())
        print(f"  similarity, quantiles: {shown}")


def score(config: ScoreConfig) -> dict[str, Any]:
    """Write the scored side-cars; return how many pairs there are, and how their scores are distributed.

    Raises UserError when shards, side-cars or benchmarks are missing.
    """
    card = load_source(config.source)
    tars = _tars(config)
    out = Path(config.out).resolve()
    cache = Path(config.cache or out / "_measured").resolve()
    with locked(cache / "lock", f"another process is at work in {cache}: wait for it or stop it"):
        con = duckdb_io.connect(config.threads, config.memory, cache / "spill")
        hashes = _named(cache / "phash", tars)
        _measure(tars, hashes, hash_shard, (), config, "perceptual hashes")
        similarities = _similarities(tars, config, cache)
        images = _images(con, hashes, config, len(config.against), card.name)
        earlier = [_scored(Path(folder), number) for number, folder in enumerate(config.against)]
        everything = " UNION ALL ".join(f"SELECT id, phash FROM {one}" for one in [*earlier, images])
        near, test = cache / "near.parquet", cache / "test.parquet"
        with duckdb_io.plain_errors(con, "near-duplicates"):
            nearest(con, images, f"({everything})", config.max_distance, near)
            nearest(con, images, _test_images(config, cache), config.max_distance, test)
        _write(tars, config, out, (hashes, similarities, near, test))
        summary = _summary(con, [out / f"{tar.stem}.parquet" for tar in tars])
        con.close()
    return {"source": card.name, "model": config.model, "test_sets": list(config.test_sets), **summary}


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
    missing = [tar.stem for tar in tars if not (Path(config.captions) / f"{tar.stem}.parquet").exists()]
    if missing:
        raise UserError(f"no side-car of shard {missing[0]} in {config.captions}: run filip.data.translate first")
    for folder in config.against:
        if not any(Path(folder).glob("*.parquet")):
            raise UserError(f"against: {folder} has no scored side-cars: give what `filip data score` wrote as out=")
    return tars


def _named(folder: Path, tars: list[Path], captions: Path | None = None) -> list[Path]:
    """Return a file per shard, SHARD-IDENTITY.parquet: the name changes with the shard (or its side-car)."""
    names = []
    for tar in tars:
        # a tar in a bucket has no time here; what describes it changes with it
        states = [file_state(tar) or file_state(tar.with_suffix(".parquet"))] + (
            [file_state(captions / f"{tar.stem}.parquet")] if captions else []
        )
        names.append(f"{tar.stem}-{digest(states)[:12]}.parquet")
    return [folder / name for name in names]


def _measure(
    tars: list[Path],
    files: list[Path],
    function: Any,
    arguments: tuple[Any, ...],
    config: ScoreConfig,
    what: str,
    start: tuple[Any, tuple[Any, ...]] = (None, ()),
) -> None:
    """Run ``function(tar, file, *arguments)`` for each shard without its file."""
    files[0].parent.mkdir(parents=True, exist_ok=True)
    todo = [(tar, file, *arguments) for tar, file in zip(tars, files, strict=True) if not file.exists()]
    total = 0
    for tar, *_ in todo:
        sidecar = Path(config.captions) / f"{tar.stem}.parquet"
        with reading(sidecar):
            total += pq.read_metadata(sidecar).num_rows
    start_options = {"start": start[0], "start_arguments": start[1]}
    run_blocks(function, todo, config.processes, what=what, unit="images", total=total, **start_options)


def _similarities(tars: list[Path], config: ScoreConfig, cache: Path) -> list[Path] | None:
    if config.model is None:
        return None
    is_file = Path(config.model).is_file()
    name = sha256_of(config.model)[:16] if is_file else config.model.replace("/", "_")
    files = _named(cache / f"similarity-{name}", tars, Path(config.captions))
    start = (start_scorer, (config.model,))
    _measure(tars, files, score_shard, (config.captions, config.batch), config, "image-text similarity", start)
    return files


def _images(con: Any, hashes: list[Path], config: ScoreConfig, number: int, source: str) -> str:
    """Return SQL of the images that the side-cars have: shard, key, id and phash."""
    measured = duckdb_io.parquet(hashes, duckdb_io.WITH_FILE)
    shard = f"split_part({duckdb_io.FILE_STEM}, '-', 1)"
    stems = [file.name.partition("-")[0] for file in hashes]
    sidecars = duckdb_io.parquet([Path(config.captions) / f"{stem}.parquet" for stem in stems], duckdb_io.WITH_FILE)
    # an image that the side-cars leave out must not make another one a duplicate
    con.execute(
        f"""CREATE OR REPLACE TEMP VIEW images AS SELECT shard, key, phash,
                {duckdb_io.sql_literal(_prefix(number, source))} || shard || '/' || key AS id
            FROM (SELECT {shard} AS shard, key, phash FROM {measured}) SEMI JOIN
                (SELECT {duckdb_io.FILE_STEM} AS shard, key FROM {sidecars}) USING (shard, key)"""
    )
    return "images"


def _scored(folder: Path, number: int) -> str:
    """Return SQL of the images of another source, id and phash, by its scored side-cars."""
    files = sorted(folder.glob("*.parquet"))
    with reading(files[0]):
        if "phash" not in pq.read_schema(files[0]).names:
            raise UserError(f"against: the side-cars in {folder} have no scores: run `filip data score` on them first")
    prefix = duckdb_io.sql_literal(_prefix(number, folder.resolve().name))
    source = duckdb_io.parquet(files, duckdb_io.WITH_FILE)
    named = f"{prefix} || {duckdb_io.FILE_STEM} || '/' || key"
    return f"(SELECT {named} AS id, phash FROM {source} WHERE phash IS NOT NULL)"


def _prefix(number: int, source: str) -> str:
    """Return what precedes shard and key in an id: sources are in the order of the ids, after the benchmarks."""
    return f"{number:04d}:{source}/"


def _test_images(config: ScoreConfig, cache: Path) -> str:
    """Return SQL of the images of the benchmarks, id and phash; hashes of a set that has not changed are kept."""
    folder = cache / "test_sets"
    folder.mkdir(parents=True, exist_ok=True)
    relations = ["SELECT '' AS id, CAST(0 AS BIGINT) AS phash WHERE false"]
    for card in config.test_sets:
        file = folder / f"{Path(card).stem}-{state_of_test_set(card, config.root)}.parquet"
        if not file.exists():
            hash_test_set(card, config.root, file)
        named = duckdb_io.sql_literal(f"!{Path(card).stem}/")  # before all numbers
        relations.append(f"SELECT {named} || key AS id, phash FROM {duckdb_io.parquet(file)}")
    return f"({' UNION ALL '.join(relations)})"


def _write(tars: list[Path], config: ScoreConfig, out: Path, measured: tuple[Any, ...]) -> None:
    """Write the side-cars with their scores, in the rows' order."""
    hashes, similarities, *distances = measured
    near, test = (
        ByShard(rows_by_shard(pq.ParquetFile(path).iter_batches(10_000)), pq.read_schema(path).empty_table())
        for path in distances
    )
    for path in out.glob("*.parquet"):
        if path.stem not in {tar.stem for tar in tars}:
            path.unlink()  # its shard no longer exists
    for number, tar in enumerate(tars):
        with reading(Path(config.captions) / f"{tar.stem}.parquet"):
            table = whole_file(Path(config.captions) / f"{tar.stem}.parquet").combine_chunks()
        keys = table["key"]
        if similarities is None:
            values = pa.nulls(len(table), pa.float32())
        else:
            values = _aligned(keys, whole_file(similarities[number]), "similarity")
        columns = {"similarity": values, "phash": _aligned(keys, whole_file(hashes[number]), "phash")}
        for name, rows in (("near", near.of(tar.stem)), ("test", test.of(tar.stem))):
            distance = _aligned(keys, rows, "distance").cast(pa.int8())
            columns[f"{name}_distance"] = pc.fill_null(distance, ANY_DISTANCE)
            columns[name] = pc.replace_substring_regex(_aligned(keys, rows, "other"), r"^(!|\d+:)", "")
        for name, column in columns.items():
            table = table.append_column(name, column)
        write_sidecar(out / f"{tar.stem}.parquet", table)


def _aligned(keys: pa.ChunkedArray, measured: pa.Table, column: str) -> pa.Array:
    """Return the value of each key in a table of keys and values; null where it has none."""
    if not len(measured):
        return pa.nulls(len(keys), measured.schema.field(column).type)
    places = pc.index_in(pa.concat_arrays(keys.chunks), value_set=pa.concat_arrays(measured["key"].chunks))
    return pa.concat_arrays(measured[column].chunks).take(places)


def _summary(con: Any, sidecars: list[Path]) -> dict[str, Any]:
    files = duckdb_io.parquet(sidecars)
    shares = [0.05, 0.25, 0.5, 0.75, 0.95]
    pairs, quantiles = con.sql(f"SELECT count(*), quantile_cont(similarity, {shares}) FROM {files}").fetchall()[0]
    summary: dict[str, Any] = {"pairs": pairs, "similarity": {}}
    if quantiles:
        summary["similarity"] = {
            f"{share:.0%}": round(value, 4) for share, value in zip(shares, quantiles, strict=True)
        }
    for name in ("near_distance", "test_distance"):
        counts = con.sql(
            f"SELECT {name}, count(*) FROM {files} WHERE {name} < {ANY_DISTANCE} GROUP BY 1 ORDER BY 1"
        ).fetchall()
        summary[name] = {str(bits): count for bits, count in counts}
    return summary


if __name__ == "__main__":
    run_command(main, ScoreConfig)
