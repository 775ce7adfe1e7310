"""Judge each back-translation by the rules of ``acceptance``, by statistics over them all, and by embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filip.data.captions.acceptance import MAX_ORIGINALS, rejections
from filip.data.captions.semantic_similarity import pivot_similarities, similarities
from filip.data.captions.sidecar_tables import PLAIN
from filip.data.captions.translation_cache import TranslationCache
from filip.data.lists import duckdb_io
from filip.data.lists.parquet_rows import row_group
from filip.files import digest, replacing
from filip.worker_pool import run_blocks

# The rules judge this many candidates while a process starts and reads its word lists.
WORTH_A_PROCESS = 300_000


@dataclass(frozen=True)
class AcceptanceLimits:
    """Minimum cosine similarities; None = not measured."""

    similarity: float | None = None
    pivot_similarity: float | None = None


def judge(
    con: duckdb.DuckDBPyConnection,
    caches: list[TranslationCache],
    captions: Path,
    work: Path,
    limits: AcceptanceLimits,
    processes: int,
) -> str:
    """Judge every candidate; return SQL of (caption, pivot_index, back, reason), where reason NULL = accepted."""
    nothing = "(SELECT '' AS caption, 0 AS pivot_index, '' AS back, '' AS reason WHERE false)"
    if not caches:
        return nothing
    union = " UNION ALL ".join(
        f"SELECT caption, {pivot} AS pivot_index, pivot_text, back FROM {duckdb_io.parquet(captions)} "
        f"JOIN {cache.sql()} ON caption = text"
        for pivot, cache in enumerate(caches)
    )
    back_plain, caption_plain = PLAIN.format("back"), PLAIN.format("caption")
    nth = "row_number() OVER (PARTITION BY caption, back_plain ORDER BY pivot_index)" if len(caches) > 1 else "1"
    # a killed run may be restarted with another engine, pivot or limit
    engines_id = digest([cache.folder.name for cache in caches])[:16]
    candidates = work / f"candidates-{engines_id}-{MAX_ORIGINALS}.parquet"
    if not candidates.exists():
        # seconds of work by the rules; English embeddings take 1000 times as long
        few = -(-pq.read_metadata(captions).num_rows * len(caches) // (4 * processes))
        block = duckdb_io.ROWS_PER_GROUP if limits.similarity is None else min(5000, max(250, few))
        duckdb_io.write_parquet(
            con,
            f"""WITH plain AS (SELECT *, {back_plain} AS back_plain FROM ({union})),
                common AS (
                    SELECT pivot_index, back_plain FROM plain GROUP BY ALL HAVING count(*) > {MAX_ORIGINALS}),
                favourites AS (
                    SELECT pivot_index, back_plain, true AS collapsed
                    FROM plain SEMI JOIN common USING (pivot_index, back_plain) GROUP BY ALL
                    HAVING count(DISTINCT {caption_plain}) > {MAX_ORIGINALS})
                SELECT caption, pivot_index, pivot_text, back, coalesce(collapsed, false) AS collapsed, {nth} AS nth
                FROM plain LEFT JOIN favourites USING (pivot_index, back_plain) ORDER BY caption, pivot_index""",
            candidates,
            "translate: candidates",
            block,
        )
    folder = work / f"judged-{engines_id}-{limits.similarity}-{limits.pivot_similarity}"
    folder.mkdir(exist_ok=True)
    groups = pq.ParquetFile(candidates).metadata
    todo = [(candidates, group, folder / f"{group:05d}.parquet", limits) for group in range(groups.num_row_groups)]
    by_rules_alone = limits == AcceptanceLimits()
    run_blocks(
        judge_block,
        [block for block in todo if not block[2].exists()],
        min(processes, -(-groups.num_rows // WORTH_A_PROCESS)) if by_rules_alone else processes,
        what="translate: guard",
        unit="candidates",
        total=groups.num_rows,
    )
    return duckdb_io.parquet([path for _, _, path, _ in todo]) if todo else nothing


def judge_block(candidates: Path, group: int, path: Path, limits: AcceptanceLimits) -> int:
    """Assign to each candidate of one row group the reason to drop it, or None."""
    table = row_group(candidates, group)
    captions, backs = table["caption"].to_pylist(), table["back"].to_pylist()
    reasons = rejections(captions, backs)
    for reason, condition in (
        ("collapsed", table["collapsed"]),
        ("duplicate", pc.greater(table["nth"], 1)),  # another pivot gave the same
    ):
        for i in np.flatnonzero(condition).tolist():
            reasons[i] = reasons[i] or reason
    for limit, measure, column, reason in (
        (limits.pivot_similarity, pivot_similarities, "pivot_text", "mistranslated"),  # the faster one runs first
        (limits.similarity, similarities, "back", "meaning_changed"),
    ):
        standing = [i for i, found in enumerate(reasons) if found is None]
        if limit is None or not standing:
            continue
        compared = table[column].take(standing).to_pylist()
        for i, similarity in zip(standing, measure([captions[i] for i in standing], compared), strict=True):
            if similarity < limit:
                reasons[i] = reason
    table = table.select(["caption", "pivot_index", "back"]).append_column("reason", pa.array(reasons, pa.string()))
    with replacing(path) as part:
        pq.write_table(table, part, compression="zstd", use_dictionary=["reason"])
    return table.num_rows
