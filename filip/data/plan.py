"""Estimate the needs of a list of so many rows, stage by stage, before anything is started.

filip data plan rows=340e6 cores=64 urls_per_second=3000
filip data plan source=cc12m rows=12.4e6

Processor time, disk and memory per row were measured on up to ten million rows (bench/RESULTS.md has the tables and
their command). The user states what depends on the network and on the engine: ``urls_per_second``
of the whole download, ``captions_per_second`` of a core that translates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from filip.command import MISSING, option, run_command
from filip.data.captions.translation_cache import block_size
from filip.data.cards import SourceCard, load_source
from filip.files import readable

MB, GB = 10**6, 10**9
SHARDS_PER_TRANSLATION = 8  # shards that each translation job gets ...
MOST_TRANSLATIONS = 256  # ... but at most so many jobs: each reads the plan that all share

# Core seconds per row (bench/RESULTS.md; Zen 4 and Zen 5).
PREPARE, TEXT_RULES, PLAN, TRANSLATE = 6e-6, 50e-6, 6e-6, 20e-6
JUDGE = 150e-6  # per translation: the rules of ``captions.judging``, and the statistics over them all
MANIFEST, INDEX, NEAR_DUPLICATES = 5e-6, 12e-6, 10e-6
# Per image: checked, resized to 256 px and encoded, for each million pixels more, and hashed for near-duplicates.
STORE, STORE_MEGAPIXEL, HASH = 3e-3, 1e-3, 2.5e-3
# Bytes per row that stay, packed: a list, a shard's description, its index and its side-car, the joined index ...
LISTED, DESCRIBED, INDEXED, SIDECAR, JOINED = 73, 68, 32, 36, 16
TRANSLATED, ACCEPTED = 70, 25  # ... and per translation, in the cache and in the side-car
IN_TAR = 3500  # per image in addition to its bytes: three headers, .json and .txt, each padded to 512
# Temporary bytes per row, measured on 10 million rows with DuckDB's lowest limit, where nearly all is spilled (1 GB for
# INGEST and JUDGE). PLAN has not been measured apart from `translate`, which has it and more.
SCRATCH_LIST, SCRATCH_RULES, SCRATCH_PLAN, SCRATCH_INGEST = 340, 320, 100, 500
SCRATCH_TRANSLATE, SCRATCH_JUDGE, SCRATCH_NEAR = 240, 330, 100
PROCESS = 350 * MB  # a Python process with DuckDB, Arrow or the language model, in addition to DuckDB's limit
DOWNLOADER = 1500 * MB  # a downloading process with its decoders and the images in flight
SHARD = 15_000  # per shard, if one process reads the files of all
ENGINE = 1000 * MB  # a translating process: two directions of an OPUS-MT model in int8, and a block


@dataclass
class PlanConfig:
    rows: float = option(MISSING, "rows of the list, or images, e.g. 340e6", at_least=1)
    source: str | None = option(None, "source card: shard size, pivots, success rate; default: the cards' defaults")
    cores: int = option(2, "cores that work at once", at_least=1)
    threads: int = option(8, "cores of one job: data.threads of a study", at_least=1)
    kept: float = option(1.0, "share of the rows that the text rules keep", above=0, at_most=1)
    success: float | None = option(None, "share of URLs that give an image; default: the card's", above=0, at_most=1)
    urls_per_second: float = option(1000.0, "URLs that the download tries, all machines together", above=0)
    captions_per_second: float = option(100.0, "round trips of a core", above=0)
    image_bytes: int = option(25_000, "mean size of a stored image", at_least=1)
    megapixels: float = option(0.3, "mean size of a picture before it is resized", above=0)
    dead: float = option(0.0, "share of the rows with a host that never answers", at_least=0, at_most=1)


@dataclass(frozen=True)
class PlannedStage:
    """A stage: bytes and hours are the whole stage's, memory and cores one job's."""

    name: str
    jobs: int
    files: int
    memory: float  # bytes per job
    disk: float  # bytes that stay
    scratch: float  # further bytes, until the stage is done
    cores: int  # per job
    hours: float


def main(config: PlanConfig) -> None:
    """Print jobs, files, memory, disk, hours and cores of each data stage, for a list of so many rows."""
    print("\n".join(table(config)))


def duckdb_memory(rows: float) -> float:
    """Return DuckDB's limit (``memory=``) in bytes with which a stage passes with room to spare: at least 1 GB.

    The rest spills to disk. The part that cannot be spilled was found to grow with the square root of the rows.
    """
    return max(GB, math.ceil(4 * least_memory(rows) / GB) * GB)


def least_memory(rows: float) -> float:
    """Return the lowest limit in bytes with which the stages passed on two threads."""
    return max(120 * MB, 80 * MB * math.sqrt(rows / 1e6))


def translation_jobs(shards: int) -> int:
    """Return how many jobs share the translation of a source; 1: one does it all."""
    return min(-(-shards // SHARDS_PER_TRANSLATION), MOST_TRANSLATIONS)


def stages(config: PlanConfig, card: SourceCard) -> list[PlannedStage]:
    """Return the stages of a source in their order."""
    rows = int(config.rows)
    kept = math.ceil(rows * config.kept)
    success = config.success if config.success is not None else card.download.normal_success_rate or 1.0
    images = math.ceil(kept * success)
    shards = -(-kept // card.download.samples_per_shard)
    threads = min(config.threads, config.cores)
    list_memory, opened = duckdb_memory(rows) + PROCESS, shards * SHARD
    # the card has the processes of the download, a study those that read its images
    processes = threads if card.images is not None else min(card.download.processes, config.cores)
    downloading = processes * DOWNLOADER
    stored = images * (config.image_bytes + IN_TAR) + kept * DESCRIBED + images * INDEXED
    storing = images * (STORE + STORE_MEGAPIXEL * config.megapixels)
    planned: list[PlannedStage] = []

    def add(
        name: str, files: int, memory: float, disk: float, scratch: float, seconds: float,
        jobs: int = 1, cores: int = threads, at_once: int | None = None, least: float = 0.0,
    ) -> None:  # fmt: skip
        """Add a stage of ``seconds`` of one core, which ``at_once`` cores share; it takes ``least`` seconds or more."""
        hours = max(seconds / (at_once or cores), least) / 3600
        planned.append(PlannedStage(name, jobs, files, memory, disk, scratch, cores, hours))

    if card.images is None:
        add("prepare", 1, list_memory, rows * LISTED, rows * SCRATCH_LIST, rows * PREPARE)
    rules = list_memory + threads * PROCESS
    add("text_rules", 1, rules, kept * LISTED, rows * SCRATCH_RULES, rows * TEXT_RULES)
    if card.images is not None:
        add("ingest", 4 * shards, max(rules, downloading), stored, rows * SCRATCH_INGEST, storing)
    else:
        load = card.download
        # at worst each is of another host: its attempts of the first pass, and one of the retry pass, wait in a thread
        waiting = kept * config.dead * (load.retries + 2) * load.timeout / (processes * load.threads)
        network = kept / config.urls_per_second + waiting
        add("download", 4 * shards, downloading, stored, 0, storing, cores=config.cores, least=network)
    translation = card.back_translation
    pivots = len(translation.pivots) if translation else 0
    translated = images * translation.share if translation else 0
    candidates = pivots * translated
    memory = duckdb_memory(images * max(1, pivots))
    if pivots:
        jobs, read = translation_jobs(shards), (1 + pivots) * images
        if jobs > 1:
            add("translate, plan", 1 + pivots, memory + PROCESS + opened, 0, read * SCRATCH_PLAN, read * PLAN)
        blocks = pivots * -(-int(translated) // block_size(int(translated)))
        seconds, at_once = candidates / config.captions_per_second, min(jobs, config.cores)
        add("translate, parts", blocks, PROCESS + ENGINE, candidates * TRANSLATED, 0, seconds, jobs, 1, at_once)
    add(
        "translate", shards, memory + (1 + threads) * PROCESS + opened, images * SIDECAR + candidates * ACCEPTED,
        images * SCRATCH_TRANSLATE + candidates * SCRATCH_JUDGE, images * TRANSLATE + candidates * JUDGE,
    )  # fmt: skip
    memory = duckdb_memory(images) + PROCESS + opened
    add("manifest", 1, memory, shards * 500, images * 8, images * MANIFEST)
    add("index", 5, threads * 2 * PROCESS + opened, images * JOINED, 0, images * INDEX)
    scored = images * (HASH + NEAR_DUPLICATES)
    memory += threads * PROCESS
    add("score (optional)", 2 * shards, memory, images * (SIDECAR + 16), images * SCRATCH_NEAR, scored)
    return planned


def table(config: PlanConfig) -> list[str]:
    """Return a line per stage and a summary."""
    card = load_source(config.source) if config.source else SourceCard("default")
    planned = stages(config, card)
    needed = [stage for stage in planned if "optional" not in stage.name]
    lines = [
        f"{int(config.rows):,} rows, card {card.name}: {card.download.samples_per_shard:,} rows a shard; "
        f"{config.cores} cores, up to {min(config.threads, config.cores)} in one job of DuckDB",
        f"{'stage':<18} {'jobs':>5} {'files':>9} {'memory':>9} {'disk':>9} {'scratch':>9} {'cores':>6} {'hours':>8}",
    ]
    for stage in planned:
        lines.append(
            f"{stage.name:<18} {stage.jobs:>5,} {stage.files:>9,} {readable(stage.memory):>9} "
            f"{readable(stage.disk):>9} {readable(stage.scratch):>9} {stage.cores:>6} {stage.hours:>8.2f}"
        )
    limit = duckdb_memory(config.rows)
    (translating,) = (stage for stage in planned if stage.name == "translate")  # a file per shard
    others = (1 + translating.cores) * PROCESS + translating.files * SHARD
    limit = max(limit, translating.memory - others)
    lines += [
        f"all: {sum(stage.jobs for stage in needed):,} jobs, {sum(stage.files for stage in needed):,} files, "
        f"{readable(sum(stage.disk for stage in needed))}, {sum(stage.hours for stage in needed):,.1f} hours one "
        "after the other",
        "memory and cores are those of one job; scratch is needed in addition to disk until the stage is done",
        f"in the study: data: {{threads: {min(config.threads, config.cores)}, memory: {limit / GB:.0f}GB}}",
        f"each start of a training looks at {2 * translating.files:,} files on every rank",
        f"assumed: {config.urls_per_second:,.0f} URLs a second, {config.captions_per_second:,.0f} translations a "
        f"second and core, {config.image_bytes:,} bytes an image; measure them on a part of your list",
    ]
    return lines


if __name__ == "__main__":
    run_command(main, PlanConfig)
