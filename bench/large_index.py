"""Measure a large index: bytes, seconds a query and memory, with random tokens in place of pictures.

    python -m bench.large_index                       # 100,000 pictures of a ViT-B/32: 50 tokens of 512 channels
    python -m bench.large_index dtype=float16 pool=1  # as it was before

The clock starts with the query's tokens and ends with the sorted list of all pictures; a query's own encoding comes on
top. The file of tokens is in the page cache after the first query, whose time is printed too. Memory: the greatest
resident set, mapped pages of the index included, less that before the index was opened.
"""

import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F

from filip.command import option, run_command
from filip.eval.scorer import Scorer, Texts, TokenScorer
from filip.index.store import About, Index
from filip.progress import Progress
from filip.search.ranking import rank

BATCH = 500


@dataclass
class LargeIndex:
    images: int = option(100_000, "pictures", at_least=1)
    patches: int = option(50, "tokens of a picture", at_least=1)
    dim: int = option(512, "channels", at_least=1)
    dtype: str = option("int8", "as for `filip index build`")
    pool: int = option(4, "as for `filip index build`; random tokens are pooled before they are drawn")
    words: int = option(6, "tokens of a query that count", at_least=1)
    queries: int = option(9, "queries", at_least=1)


class Synthetic:
    """A scorer for a search whose query is already encoded."""

    token_wise = True
    similarity = cast(Any, TokenScorer.similarity)


def main(study: LargeIndex) -> None:
    """Fill an index in a temporary folder and search it."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        fill(study, folder)
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
        before = memory()
        started = time.perf_counter()
        index = Index.open(folder)
        opened = time.perf_counter() - started
        clocks = []
        for _ in range(study.queries):
            words = F.normalize(torch.randn(study.words, study.dim), dim=-1)
            query = Texts(words, torch.tensor([study.words]))
            wall, cpu = time.perf_counter(), time.process_time()
            rank(index, cast(Scorer, Synthetic()), query)
            clocks.append((time.perf_counter() - wall, time.process_time() - cpu))
        index.close()
    walls, cpus = zip(*clocks, strict=True)
    print(
        f"{study.images:,} pictures, {study.dtype}, pool={study.pool}: {size / 1e6:,.0f} MB; opened in {opened:.2f} s; "
        f"first query {walls[0]:.2f} s, median of the others {statistics.median(walls[1:] or walls):.2f} s "
        f"({statistics.median(cpus[1:] or cpus):.2f} s of CPU), {torch.get_num_threads()} threads; "
        f"memory {(memory() - before) / 1e6:,.0f} MB"
    )


def fill(study: LargeIndex, folder: str) -> None:
    """Write an index. Pooled tokens are drawn as such: clusters of noise have no meaning, and take their time."""
    count = max(1, study.patches // study.pool)
    index = Index.create(folder, About("-", "-", 224, True, study.dim, study.dtype, "-"))
    with Progress("filling", "images", study.images) as progress:
        for start in range(0, study.images, BATCH):
            n = min(BATCH, study.images - start)
            tokens = F.normalize(torch.randn(n, count, study.dim), dim=-1)
            index.add([f"{start + k:06}.jpg" for k in range(n)], ["-"] * n, tokens)
            progress.add(n)
    index.close()


def memory() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    run_command(main, LargeIndex)
