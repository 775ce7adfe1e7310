"""Speed, memory and accuracy of the text rules.

    python -m bench.text_rules rows=1000000            # time and peak memory of the whole stage
    python -m bench.text_rules rows=10000000           # should take ten times as long
    python -m bench.text_rules rows=0                  # only the accuracy of the language rule

Captions: human labels of pictures in twelve languages, see ``tests/support/captions.py``. For the timing they are
combined in pairs and numbered, so that about nine captions in ten are distinct.
"""

import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
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


class Peak:
    """The largest of the values that ``measure`` returns while a block runs, sampled."""

    def __init__(self, measure: Callable[[], int]) -> None:
        self.measure, self.value, self._stop = measure, 0, threading.Event()

    def __enter__(self) -> "Peak":
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        pause = 0.1
        while not self._stop.wait(pause):
            started = time.perf_counter()
            self.value = max(self.value, self.measure())
            # looking at a hundred thousand files takes seconds, which would count as the block's
            pause = max(0.1, 20 * (time.perf_counter() - started))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.value = max(self.value, self.measure())


def memory() -> int:
    """Return the resident bytes of this process and its children."""
    me, total = psutil.Process(), 0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


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
            with Peak(memory) as peak:
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
                "peak_memory_gib": round(peak.value / 2**30, 2),
                "kept": fragment.n_out,
            }
        finally:
            shutil.rmtree(folder)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    run_command(main, TextRulesBench)
