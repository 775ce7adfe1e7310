"""Speed, memory and accuracy of the text rules.

    python -m bench.text_rules rows=1000000            # time and peak memory of the whole stage
    python -m bench.text_rules rows=10000000           # should take ten times as long
    python -m bench.text_rules rows=0                  # only the accuracy of the language rule

Captions: human labels of pictures in twelve languages, see ``tests/support/captions.py``. For the timing they are
combined in pairs and numbered, so that about nine captions in ten are distinct.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from filip.command import option, run_command
from filip.data.cards import SourceCard
from filip.data.text_rules import apply_text_rules
from tests.support.captions import language_accuracy, synthetic_list


@dataclass
class TextRulesBench:
    rows: int = option(1_000_000, "pairs in the list; 0 = accuracy only")
    processes: int = option(2, "processes of the language model")
    threads: int = option(2, "threads of DuckDB")
    memory: str = option("1GB", "memory limit of DuckDB")


class PeakMemory:
    """The peak of the resident memory of this process and its children, sampled; bytes."""

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


def main(config: TextRulesBench) -> None:
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
    run_command(main, TextRulesBench)
