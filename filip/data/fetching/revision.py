"""Keep what was fetched when a folder of shards is requested with another list or other image rules.

A pair (URL and caption) that is no longer wanted, or that an image rule now drops, is set aside: it stays in its tar,
the funnel counts it by its rule, and no side-car has it. Pairs that were never fetched, or were dropped by a rule that
no longer holds, get another pass, in shards behind the others. Shards are only ever added, so this is repeatable.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from filip.data.cards import SourceCard
from filip.data.lists import duckdb_io
from filip.data.shard_set import set_aside_file
from filip.data.stage import work_folder

RETRIED = "retried: "  # first word in the message of a row that a later pass takes over
PAIR = "md5_number(url || chr(10) || coalesce(caption, ''))"


def counted_only(folder: Path, shards: str) -> str:
    """Return SQL for the rows of ``shards`` (columns: shard, as text, and key) that are not set aside."""
    path = set_aside_file(folder)
    if not path.exists():
        return shards
    aside = f"(SELECT printf('%05d', shard) AS shard, key FROM {duckdb_io.parquet(path)})"
    return f"(SELECT s.* FROM {shards} s ANTI JOIN {aside} USING (shard, key))"


def revise(
    folder: Path, shards: list[int], list_path: Path, columns: list[str], card: SourceCard, added: Path, memory: str
) -> tuple[int, int]:
    """Compare the complete ``shards`` with what is wanted now; write the set-aside file and the list ``added``.

    card: its image rules, and whether it allows private hosts, whose addresses are asked again then. Returns how many
    rows ``added`` has, and how many rows of the list repeat an earlier one.
    """
    with work_folder(added, 2, memory) as (_, con):
        files = [folder / f"{shard:05d}.parquet" for shard in shards]
        _read_stored(con, files, card)
        con.execute(f"CREATE TEMP TABLE wanted AS SELECT DISTINCT {PAIR} AS pair FROM {duckdb_io.parquet(list_path)}")
        duckdb_io.write_parquet(
            con,
            """SELECT s.shard, s.row, key, stored, CASE WHEN w.pair IS NOT NULL AND last AND NOT again THEN reason END
                AS reason FROM stored s LEFT JOIN wanted w USING (pair)
                WHERE w.pair IS NULL OR again OR NOT last OR reason IS NOT NULL ORDER BY s.shard, s.row""",
            set_aside_file(folder),
            "download: what was fetched before",
        )
        listed = ", ".join(duckdb_io.sql_identifier(column) for column in columns)
        rows = duckdb_io.write_parquet(
            con,
            f"""SELECT {listed} FROM (
                    SELECT *, {PAIR} AS _pair_, row_number() OVER () AS _row_ FROM {duckdb_io.parquet(list_path)}) l
                ANTI JOIN (SELECT pair FROM stored WHERE last AND NOT again) s ON s.pair = l._pair_
                QUALIFY row_number() OVER (PARTITION BY _pair_ ORDER BY _row_) = 1 ORDER BY _row_""",
            added,
            "download: what is to be fetched",
        )
        distinct = con.sql("SELECT count(*) FROM wanted").fetchall()[0][0]
    return rows, pq.read_metadata(list_path).num_rows - distinct


def _read_stored(con: Any, files: list[Path], card: SourceCard) -> None:
    """Make the table ``stored``, with a row for each row of the shards.

    Columns: pair; place; ``last`` row of that pair; ``again``: must be fetched; ``reason``: it is there, but a rule
    drops it.
    """

    rules = card.image_rules

    def broken(width: str, height: str) -> str:
        low, high = f"least({width}, {height})", f"greatest({width}, {height})"
        return (
            f"CASE WHEN {low} < {max(1, rules.min_side)} THEN 'too_small' "
            f"WHEN {high} > {float(rules.max_aspect)} * {low} THEN 'aspect' END"
        )

    if not files:
        nothing = pa.table(
            {
                "pair": pa.array([], pa.decimal128(38)),
                "shard": pa.array([], pa.int64()),
                "row": pa.array([], pa.int64()),
                **{name: pa.array([], pa.string()) for name in ("key", "reason")},
                **{name: pa.array([], pa.bool_()) for name in ("stored", "again", "last")},
            }
        )
        con.register("nothing", nothing)
        con.execute("CREATE TEMP TABLE stored AS SELECT * REPLACE (CAST(pair AS UHUGEINT) AS pair) FROM nothing")
        return
    size = "regexp_extract(error_message, '([0-9]+) x ([0-9]+)', {})"
    sizes = [f"TRY_CAST({size.format(n)} AS BIGINT)" for n in (1, 2)]
    by_size = "regexp_matches(error_message, '^(too_small|aspect):')"
    allowed = "starts_with(error_message, 'private_address:')" if card.allow_private_hosts else "false"
    columns = ("url", "caption", "key", "status", "error_message", "original_width", "original_height")
    source = duckdb_io.columns_of_many(files, columns, duckdb_io.WITH_FILE, duckdb_io.ROW)
    con.execute(
        f"""CREATE TEMP TABLE stored AS SELECT *,
                row_number() OVER (PARTITION BY pair ORDER BY retried, shard DESC, row DESC) = 1 AS last FROM (
            SELECT {PAIR} AS pair, CAST({duckdb_io.FILE_STEM} AS BIGINT) AS shard, file_row_number AS row, key,
                status = 'success' AS stored,
                CASE WHEN status = 'success' THEN {broken("original_width", "original_height")} END AS reason,
                coalesce(starts_with(error_message, {duckdb_io.sql_literal(RETRIED)}), false) AS retried,
                retried OR coalesce(({by_size} AND ({broken(*sizes)}) IS NULL) OR {allowed}, false) AS again
            FROM {source})"""
    )
