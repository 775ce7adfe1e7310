"""Apply text rules before any download, so that a pair that they drop is never fetched.

    python -m filip.data.text_rules source=cc12m list=list.parquet out=kept.parquet funnel=text_rules.json

Every rule depends on the caption alone, and on how often it occurs in the whole list. So the list is reduced to
its distinct captions (normalised), these are judged once, and the verdicts are joined back in the order of the
list. DuckDB does it out of core; the language model, the only slow rule, runs over the distinct captions in
several processes. A killed run continues from the last block of captions that was judged.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError, counted
from filip.common.files import locked, nothing_at, replacing, sha256_of
from filip.data.cards import SourceCard, TextRuleSettings, load_source, overridden
from filip.data.funnel import Fragment
from filip.data.lists import duckdb_io
from filip.data.lists.caption_filters import NORMALISE, active_rules, conditions
from filip.data.lists.parquet_rows import row_group
from filip.data.stage import PART, Part, do_blocks, parse_part, tell, work_folder

SAMPLES = 20  # captions shown per rule, for a person to read


@dataclass
class TextRulesConfig:
    source: str = option(MISSING, "source card (name or path)")
    list: str = option(MISSING, "Parquet file with the columns url and caption")
    out: str = option(MISSING, "Parquet file of the rows that stay, in their order", writes="file")
    funnel: str | None = option(None, "funnel fragment to write, JSON", writes="file")
    dropped: str | None = option(None, "Parquet file of the rows that go, with their `reason`", writes="file")
    rules: dict[str, Any] = option({}, "overrides for the card's text_rules, e.g. rules={max_repeats:5}")
    processes: int = option(2, "processes of the language model", at_least=1)
    threads: int = option(2, "DuckDB threads", at_least=1)
    memory: str = option("1GB", "DuckDB memory; the rest spills to disk next to `out`")
    part: str | None = option(None, PART)


def main(config: TextRulesConfig) -> None:
    """Drop captions that are not English, meaningless, repeated too often, too short or too long."""
    card = overridden(load_source(config.source), "text_rules", config.rules)
    part, processes, threads, memory = parse_part(config.part), config.processes, config.threads, config.memory
    fragment = apply_text_rules(config.list, config.out, card, config.dropped, processes, threads, memory, part)
    if fragment is None:
        return

    def example(reason: str) -> str:
        shown = "; ".join(repr(text[:40]) for text in fragment.notes["samples"][reason][:3])
        return f"(alone {fragment.notes['alone'][reason]:,})  {shown}"

    tell(fragment, config.funnel, f"{config.out}: {fragment.n_out:,} of {fragment.n_in:,} pairs kept", example)


def apply_text_rules(
    list_path: str | Path,
    out: str | Path,
    card: SourceCard,
    dropped: str | Path | None = None,
    processes: int = 2,
    threads: int = 2,
    memory: str = "1GB",
    part: Part = None,
) -> Fragment | None:
    """Write the rows of ``list_path`` that pass the card's text rules to ``out``, and account for the rest.

    dropped: file for the other rows, in their order, with the column ``reason``: the first rule that they break.
    part: judge only its captions, and return None.
    The fragment's notes hold, per rule, ``alone`` (pairs it would drop on its own) and ``samples``.
    Raises UserError when the list lacks a column or no row is left.
    """
    columns = check_list(list_path)
    rules = conditions(card.text_rules)
    identity = [sha256_of(list_path), asdict(card.text_rules)]
    with work_folder(out, part, identity, threads, memory) as (scratch, con):
        unique = scratch / "unique.parquet"
        with locked(scratch / "plan.lock"):
            if not unique.exists():
                normal, listed = NORMALISE.format("coalesce(caption, '')"), duckdb_io.parquet(list_path)
                distinct = f"SELECT {normal} AS c, count(*) AS pairs FROM {listed} GROUP BY 1"
                duckdb_io.write_parquet(con, distinct, unique, "text rules: distinct captions")
        shown: Any = {"what": "text rules", "unit": "captions"}
        blocks = do_blocks(judge_block, unique, f"{scratch}/judged-", part, processes, card.text_rules, **shown)
        if part is not None:
            return None
        _charge(con, blocks, rules, scratch)
        fragment = _account(con, rules, card, scratch)
        if not fragment.n_out:
            raise UserError(f"the text rules leave nothing of {list_path}: {counted(fragment.dropped)}")
        judged = f"""(SELECT *, row_number() OVER () AS _row_ FROM {duckdb_io.parquet(list_path)}) l
            JOIN {duckdb_io.parquet(scratch / "charged.parquet")} v
            ON v.c = {NORMALISE.format("coalesce(l.caption, '')")}"""
        kept_rows = f"SELECT l.* EXCLUDE (_row_) FROM {judged} WHERE v.reason IS NULL ORDER BY l._row_"
        duckdb_io.write_parquet(con, kept_rows, out, "text rules")
        if dropped is not None:
            columns_sql = ", ".join(f"l.{duckdb_io.sql_identifier(column)}" for column in columns if column != "reason")
            gone = f"SELECT {columns_sql}, v.reason AS reason FROM {judged} WHERE v.reason IS NOT NULL ORDER BY l._row_"
            duckdb_io.write_parquet(con, gone, dropped, "text rules: dropped rows")
    return fragment


def check_list(path: str | Path) -> list[str]:
    """Return the columns of a URL list. Raises UserError when it is missing, not Parquet, or lacks url or caption."""
    try:
        schema = pq.read_schema(path)
    except FileNotFoundError as error:
        raise UserError(nothing_at(path, "`filip data prepare` makes a list")) from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not Parquet: `filip data prepare` converts other formats") from error
    missing = [column for column in ("url", "caption") if column not in schema.names]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(missing)} (it has {', '.join(schema.names)}): "
            "`filip data prepare source=... url_column= caption_column=` renames them"
        )
    return schema.names


def judge_block(unique: Path, group: int, file: Path, rules: TextRuleSettings) -> int:
    """Run the rules that need Python over a row group of captions; return their number. Runs in a worker process.

    file: gets the columns c, pairs, and per active rule of :mod:`filip.data.lists.caption_filters` whether it drops
    the caption.
    """
    table = row_group(unique, group)
    captions = table["c"].to_pylist()
    for name, rule in active_rules(rules).items():
        table = table.append_column(name, pa.array(rule.drops(captions, rules), pa.bool_()))
    with replacing(file) as part:
        pq.write_table(table, part, compression="zstd")
    return table.num_rows


def _charge(con: duckdb.DuckDBPyConnection, blocks: list[Path], rules: dict[str, str], scratch: Path) -> None:
    """Write charged.parquet: each distinct caption, the first rule it breaks, and all it breaks as bits."""
    first = " ".join(f"WHEN bits & {1 << i} <> 0 THEN '{name}'" for i, name in enumerate(rules))
    bits = " | ".join(f"(CASE WHEN {sql} THEN {1 << i} ELSE 0 END)" for i, sql in enumerate(rules.values()))
    duckdb_io.write_parquet(
        con,
        f"SELECT c, pairs, bits, CASE {first} END AS reason FROM "
        f"(SELECT *, {bits} AS bits FROM {duckdb_io.parquet(blocks)})",
        scratch / "charged.parquet",
        "text rules: verdicts",
    )


def _account(con: duckdb.DuckDBPyConnection, rules: dict[str, str], card: SourceCard, scratch: Path) -> Fragment:
    charged = duckdb_io.parquet(scratch / "charged.parquet")
    counts: dict[str | None, int] = {
        reason: int(pairs)
        for reason, pairs in con.sql(f"SELECT reason, sum(pairs) FROM {charged} GROUP BY 1").fetchall()
    }
    alone_sql = ", ".join(f"coalesce(sum(pairs) FILTER (bits & {1 << i} <> 0), 0)" for i in range(len(rules)))
    alone = con.sql(f"SELECT {alone_sql}, count(*) FROM {charged}").fetchall()[0]
    samples = {}
    for i, name in enumerate(rules):
        # ordered by md5: as good as random, and the same in every run
        rows = con.sql(f"SELECT left(c, 200) FROM {charged} WHERE bits & {1 << i} <> 0 ORDER BY md5(c) LIMIT {SAMPLES}")
        samples[name] = [text for (text,) in rows.fetchall()]
    n_kept = counts.pop(None, 0)
    dropped = {name: counts.get(name, 0) for name in rules}
    notes = {
        "distinct_captions": int(alone[-1]),
        "alone": {name: int(alone[i]) for i, name in enumerate(rules)},
        "samples": samples,
        "rules": asdict(card.text_rules),
    }
    return Fragment("text_rules", card.name, n_kept + sum(dropped.values()), n_kept, dropped, "pairs", notes)


if __name__ == "__main__":
    run_command(main, TextRulesConfig)
