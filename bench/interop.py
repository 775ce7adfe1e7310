"""Losses of other libraries with their own scorers and with ours: time and memory, forward and backward.

    python -m bench.interop [--queries 128] [--rounds 9] [--isa avx512_bf16 avx2] [--json PATH]

sentence-transformers' ``MultiVectorMultipleNegativesRankingLoss`` and, where it is installed, PyLate's ``Contrastive``
are called as their trainers call them; fixed unit tokens of 128 features, float32, take the place of the encoder. Three
kinds of batches: text retrieval with ColBERT's lengths (queries of 32, documents of 60 to 180), the same with a hard
negative, and captions of 20 tokens on average against 196 patches. Time is the process's CPU time, all cores together;
the two scorers take turns, and what is printed are medians over the rounds, of the ratios too. Each instruction set has
a process that all libraries stop at (bench.interaction). Memory is the growth of the resident set at its high-water
mark in a fresh process, gradients included.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads OpenMP

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.interaction import LIMITS
from bench.interaction_memory import ENVIRONMENT, growth
from filip.interaction import native
from filip.interaction.adapters import colbert_scores

DIM = 128
# name: (query lengths, document lengths, documents per query); the lengths from and to, both included
BATCHES = {
    "text, 32 x 60 to 180": ((32, 32), (60, 180), 1),
    "the same, one hard negative": ((32, 32), (60, 180), 2),
    "captions, 8 to 32 x 196": ((8, 32), (196, 196), 1),
}
SCORERS = {"theirs": None, "ours": colbert_scores}
Step = Callable[[], object]


LOSSES = ("sentence-transformers", "PyLate")


class Given(nn.Module):
    """A stand-in for an encoder: a batch is its embeddings."""

    skiplist: tuple[int, ...] = ()
    do_query_expansion = False

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        return features


def batch(name: str, queries: int) -> list[dict[str, Tensor]]:
    """Make the queries, then one column for each document of a query; padded to the longest."""
    lengths_of_queries, lengths_of_documents, ways = BATCHES[name]
    generator = torch.Generator().manual_seed(0)

    def column(low: int, high: int) -> dict[str, Tensor]:
        lengths = torch.randint(low, high + 1, (queries,), generator=generator)
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        tokens = F.normalize(torch.randn(*mask.shape, DIM, generator=generator), dim=-1) * mask[..., None]
        return {"token_embeddings": tokens.requires_grad_(), "attention_mask": mask, "input_ids": mask.long()}

    return [column(*lengths_of_queries)] + [column(*lengths_of_documents) for _ in range(ways)]


def loss_of(library: str, scorer: str) -> Callable[[list[dict[str, Tensor]]], Tensor]:
    if library == "PyLate":
        contrastive = importlib.import_module("pylate.losses").Contrastive
        return contrastive(Given(), score_metric=SCORERS[scorer])  # type: ignore[no-any-return]
    from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss

    return MultiVectorMultipleNegativesRankingLoss(Given(), similarity_fct=SCORERS[scorer])  # type: ignore[arg-type]


def step_of(library: str, scorer: str, features: list[dict[str, Tensor]]) -> Step:
    loss = loss_of(library, scorer)

    def step() -> object:
        for column in features:
            column["token_embeddings"].grad = None
        value = loss(features)
        value.backward()
        return value

    return step


def measure(library: str, name: str, queries: int, rounds: int, memory: bool) -> dict[str, float]:
    features = batch(name, queries)
    steps = {scorer: step_of(library, scorer, features) for scorer in SCORERS}
    seconds: dict[str, list[float]] = {scorer: [] for scorer in SCORERS}
    for turn in range(rounds + 1):
        for scorer, step in steps.items():
            started = time.process_time()
            step()
            if turn:  # the first warms up
                seconds[scorer].append(time.process_time() - started)
    ratios = [theirs / ours for theirs, ours in zip(seconds["theirs"], seconds["ours"], strict=True)]
    found = {
        **{f"{scorer}_ms": 1e3 * statistics.median(taken) for scorer, taken in seconds.items()},
        "faster": statistics.median(ratios),
        "faster_least": min(ratios),
    }
    if memory:
        peaks = {scorer: _peak_megabytes(library, name, queries, scorer) for scorer in SCORERS}
        found |= {f"{scorer}_mb": megabytes for scorer, megabytes in peaks.items()}
        found["smaller"] = peaks["theirs"] / peaks["ours"]
    return found


def _peak_megabytes(library: str, name: str, queries: int, scorer: str) -> float:
    of = ["--memory-of", library, name, scorer]
    command = [sys.executable, "-m", "bench.interop", *of, "--queries", str(queries)]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def print_peak(library: str, name: str, queries: int, scorer: str) -> None:
    step_of(library, scorer, batch(name, 4))()  # starts threads and libraries
    print(growth(step_of(library, scorer, batch(name, queries))))


def print_rows(isa: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure in this process, which is limited to ``isa``."""
    found = {}
    for library in options.losses:
        if library == "PyLate" and importlib.util.find_spec("pylate") is None:
            continue
        for name in BATCHES:
            f = found[f"{isa}/{library}/{name}"] = measure(
                library, name, options.queries, options.rounds, not options.time_only
            )
            memory = (
                "| |" if options.time_only else f"{f['theirs_mb']:,.0f} | {f['ours_mb']:,.0f} | {f['smaller']:.1f} |"
            )
            print(
                f"| {isa} | {library} | {name} | {f['theirs_ms']:,.0f} | {f['ours_ms']:,.0f} | {f['faster']:.1f} "
                f"({f['faster_least']:.1f}) | {memory}",
                flush=True,
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--queries", type=int, default=128, help="queries of a batch")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--isa", nargs="+", choices=list(LIMITS), help="instruction sets; default: the best")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=LOSSES, help="libraries")
    parser.add_argument("--time-only", action="store_true", help="leave the memory out")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--rows-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        library, name, scorer = options.memory_of
        print_peak(library, name, options.queries, scorer)
        return
    if options.rows_of:
        found = print_rows(options.rows_of, options)
        options.json.write_text(json.dumps(found))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.queries} queries a batch, d = {DIM}")
    print(
        "| | loss of | batch | theirs, CPU ms | ours, CPU ms | times faster (least) | theirs, MB | ours, MB "
        "| times smaller |\n|---|---|---|--:|--:|--:|--:|--:|--:|",
        flush=True,
    )
    result: dict[str, Any] = {}
    for isa in options.isa or native.isas()[:1]:
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            own = ["--rows-of", isa, "--json", file.name]
            command = [sys.executable, "-m", "bench.interop", *own]
            command += ["--queries", str(options.queries), "--rounds", str(options.rounds)]
            command += ["--losses", *options.losses, *(["--time-only"] if options.time_only else [])]
            environment = {**os.environ, **LIMITS.get(isa, {}), native.ISA_VARIABLE: isa}
            subprocess.run(command, env=environment, check=True)
            result |= json.loads(Path(file.name).read_text())
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
