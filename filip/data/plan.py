"""Estimate the bytes that a source takes, as measured on up to ten million rows (bench/RESULTS.md)."""

from __future__ import annotations

import math

from filip.data.cards import SourceCard

SHARDS_PER_TRANSLATION = 8  # shards that each translation job gets ...
MOST_TRANSLATIONS = 256  # ... but at most so many jobs: each reads the plan that all share
IMAGE = 25_000  # mean bytes of a stored image
IN_TAR = 3500  # per image in addition to its bytes: three headers, .json and .txt, each padded to 512
# Bytes per row that stay, packed: a list, a shard's description, its index and its side-car, the joined index ...
LISTED, DESCRIBED, INDEXED, SIDECAR, JOINED = 73, 68, 32, 36, 16
TRANSLATED, ACCEPTED = 70, 25  # ... and per translation, in the cache and in the side-car
# Temporary bytes per row, measured on 10 million rows with DuckDB's lowest limit, where nearly all is spilled (1 GB for
# INGEST and JUDGE). PLAN has not been measured apart from `translate`, which has it and more.
SCRATCH_LIST, SCRATCH_RULES, SCRATCH_PLAN, SCRATCH_INGEST = 340, 320, 100, 500
SCRATCH_TRANSLATE, SCRATCH_JUDGE = 240, 330


def translation_jobs(shards: int) -> int:
    """Return how many jobs share the translation of a source; 1: one does it all."""
    return min(-(-shards // SHARDS_PER_TRANSLATION), MOST_TRANSLATIONS)


def disk_bytes(card: SourceCard, rows: int) -> float:
    """Return the bytes that a source of so many rows takes at its fullest: all that stays, and one stage's scratch."""
    images = math.ceil(rows * (card.download.normal_success_rate or 1.0))
    shards = -(-rows // card.download.samples_per_shard)
    pivots = len(card.back_translation.pivots) if card.back_translation else 0
    translations = pivots * images * card.back_translation.share if card.back_translation else 0
    stays: float = rows * (LISTED + DESCRIBED) + images * (INDEXED + SIDECAR + JOINED)
    stays += translations * (TRANSLATED + ACCEPTED) + shards * 500 + images * (IMAGE + IN_TAR)
    scratch = [rows * SCRATCH_RULES, images * SCRATCH_TRANSLATE + translations * SCRATCH_JUDGE]
    if card.images is None:
        stays += rows * LISTED
        scratch.append(rows * SCRATCH_LIST)
    else:
        scratch.append(rows * SCRATCH_INGEST)
    if pivots and translation_jobs(shards) > 1:
        scratch.append((1 + pivots) * images * SCRATCH_PLAN)
    return stays + max(scratch)
