"""Speed, memory and accuracy of the text rules.

    python -m bench.text_rules rows=1000000            # time and peak memory of the whole stage
    python -m bench.text_rules rows=10000000           # should take ten times as long
    python -m bench.text_rules rows=0                  # only the accuracy of the language rule

Captions: ``tests/data/short_captions.tsv.gz``, human labels of pictures in twelve languages (Unicode CLDR short
names as packed in emojibase-data 17.0.0, MIT), 1,200 English and 400 of each other language. For the timing they
are combined in pairs and numbered, so that about nine captions in ten are distinct.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from filip.command import option, run_command
from filip.data.cards import SourceCard
from filip.data.lists.language import are_english
from filip.data.text_rules import apply_text_rules

CAPTIONS = Path(__file__).resolve().parents[1] / "tests" / "data" / "short_captions.tsv.gz"


@dataclass
class BenchConfig:
    rows: int = option(1_000_000, "pairs in the list; 0 = accuracy only")
    processes: int = option(2, "processes of the language model")
    threads: int = option(2, "threads of DuckDB")
    memory: str = option("1GB", "memory limit of DuckDB")


def labelled_captions() -> dict[str, list[str]]:
    """Language code → captions."""
    found = defaultdict(list)
    with gzip.open(CAPTIONS, "rt", encoding="utf-8") as file:
        for line in file:
            language, caption = line.rstrip("\n").split("\t")
            found[language].append(caption)
    return dict(found)


def language_accuracy(least_words: int = 1, most_words: int = 1000) -> dict[str, float]:
    """Shares of English and of other languages that the rule accepts, for captions of that many words."""
    kept: dict[bool, list[bool]] = {True: [], False: []}
    for language, captions in labelled_captions().items():
        chosen = [c for c in captions if least_words <= len(c.split()) <= most_words]
        kept[language == "en"] += are_english(chosen)
    return {
        "english_recall": float(np.mean(kept[True])),
        "others_kept": float(np.mean(kept[False])),
        "english": len(kept[True]),
        "others": len(kept[False]),
    }


def synthetic_list(path: Path, rows: int, seed: int = 0) -> None:
    """A URL list of ``rows`` pairs from real captions, written in blocks so that memory stays flat."""
    rng = np.random.default_rng(seed)
    captions = [c for group in labelled_captions().values() for c in group]
    english = labelled_captions()["en"]
    schema = pa.schema([("url", pa.string()), ("caption", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 200_000):
            n = min(200_000, rows - start)
            first = rng.integers(0, len(captions), n)
            second = rng.integers(0, len(english), n)
            number = rng.integers(0, 40, n)
            texts = [
                captions[a] if k < 4 else f"{captions[a]} beside {k} {english[b]}"
                for a, b, k in zip(first, second, number, strict=True)
            ]
            urls = [f"https://example.org/{start + i}.jpg" for i in range(n)]
            writer.write_table(pa.table({"url": urls, "caption": texts}, schema))


class PeakMemory:
    """Peak of the resident memory of this process and its children, sampled; bytes."""

    def __enter__(self) -> PeakMemory:
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        me = psutil.Process(os.getpid())
        while not self._stop.wait(0.1):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.bytes = max(self.bytes, total)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def main(config: BenchConfig) -> None:
    """Print one JSON object with the measurements."""
    result: dict[str, object] = {
        f"language, {low}-{high} words": language_accuracy(low, high)
        for low, high in ((1, 2), (3, 4), (5, 1000), (3, 1000))
    }
    if config.rows:
        folder = Path(tempfile.mkdtemp(prefix="bench_text_rules."))
        try:
            synthetic_list(folder / "list.parquet", config.rows)
            print(f"{config.rows:,} rows written; the stage starts", file=sys.stderr)
            started = time.perf_counter()
            with PeakMemory() as peak:
                fragment = apply_text_rules(
                    folder / "list.parquet",
                    folder / "kept.parquet",
                    SourceCard("bench"),
                    processes=config.processes,
                    threads=config.threads,
                    memory=config.memory,
                )
            seconds = time.perf_counter() - started
            result |= {
                "rows": config.rows,
                "distinct_captions": fragment.notes["distinct_captions"],
                "seconds": round(seconds, 1),
                "rows_per_second": round(config.rows / seconds),
                "peak_memory_gib": round(peak.bytes / 2**30, 2),
                "kept": fragment.n_out,
            }
        finally:
            shutil.rmtree(folder)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    run_command(main, BenchConfig)
