"""Turn a list of URLs and captions into ``list.parquet``: the columns ``url``, ``caption`` and whatever else it had.

    python -m filip.data.prepare source=cc12m list=cc12m.tsv out=list.parquet
    python -m filip.data.prepare source=my_pairs.csv.gz url_column=link caption_column=alt out=list.parquet

Reads the tables that ``filip data ingest`` reads, and globs of them: TSV, CSV, JSON, JSON lines (plain, .gz, .zst,
.bz2), Parquet. Lines that cannot be read, and rows without a caption or a usable URL, are dropped and counted. The list
is cut by the hashes of its URLs, so that rows that may be equal are in one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError, counted
from filip.common.files import file_state, locked
from filip.common.progress import say
from filip.data.cards import SourceCard, check_card, load_source
from filip.data.funnel import Fragment, write_fragment
from filip.data.lists import duckdb_io
from filip.data.lists.columns import REASON, REPEATED, ROW, guessed_columns, judged_rows, where_condition
from filip.data.lists.reading import SUFFIXES, list_files, relation
from filip.data.stage import PART, Part, parse_part, share, work_folder

SAMPLES = 10  # rows shown per reason
ROWS = 20_000_000  # in a block: each block reads the whole list


@dataclass
class PrepareConfig:
    source: str = option(MISSING, "source card (name or path), or directly a list: Parquet, TSV, CSV, JSON lines")
    out: str = option(MISSING, "Parquet file to write", writes="file")
    list: str | None = option(None, "path or glob; default: the card's")
    url_column: str | None = option(None, "name of the URL column; default: the card's, else 'url'")
    caption_column: str | None = option(None, "name of the caption column; default: the card's, else 'caption'")
    subset: str | None = option(None, "path of the list of rows to take; default: the card's, if it has one")
    where: str | None = option(None, "SQL condition, e.g. 'similarity > 0.3'; default: the card's")
    funnel: str | None = option(None, "funnel fragment to write, JSON", writes="file")
    shuffle: bool = option(True, "shuffle the rows: shards stay mixed, and no host is hit by all workers at once")
    seed: int = option(0, "seed of the shuffle", at_least=0)
    threads: int = option(2, "DuckDB threads", at_least=1)
    memory: str = option("1GB", "DuckDB memory; the rest spills to disk next to `out`")
    part: str | None = option(None, PART)


def main(config: PrepareConfig) -> None:
    """Turn a list of URLs and captions in any of the known formats into list.parquet."""
    card = resolve_card(config)
    settings = {name: getattr(config, name) for name in ("shuffle", "seed", "threads", "memory")}
    fragment = prepare(card, config.out, part=parse_part(config.part), **settings)
    if fragment is None:
        return
    if config.funnel:
        write_fragment(config.funnel, fragment)
    print(f"{config.out}: {fragment.n_out:,} of {fragment.n_in:,} rows; dropped {counted(fragment.dropped)}")
    if card.expected_count and abs(fragment.n_in - card.expected_count) > 0.05 * card.expected_count:
        say(f"note: the card expects about {card.expected_count:,} rows, this list has {fragment.n_in:,}")


def resolve_card(config: PrepareConfig) -> SourceCard:
    """Return the card of ``config.source``; a bare list gets a card with the default rules."""
    path = Path(config.source)
    is_list = any(suffix in path.suffixes for suffix in SUFFIXES) or "*" in config.source
    card = SourceCard(path.name.split(".")[0], list=config.source) if is_list else load_source(config.source)
    names = ("list", "subset", "where", "url_column", "caption_column")
    given: dict[str, Any] = {name: value for name in names if (value := getattr(config, name))}
    if config.caption_column:
        given["caption_columns"] = []
    card = replace(card, **given)
    check_card(card)
    return card


def prepare(
    card: SourceCard,
    out: str | Path,
    *,
    shuffle: bool = True,
    seed: int = 0,
    threads: int = 2,
    memory: str = "1GB",
    part: Part = None,
) -> Fragment | None:
    """Write ``out`` (Parquet: url and caption as strings, then the other columns of the list) and account for it.

    part: judge only its rows, and return None.
    Raises UserError when the list is missing, a named column is not in it, or nothing is left.
    """
    paths = list_files(card)
    files = [*paths, *([card.subset] if card.subset else [])]
    identity = [asdict(card), [[file, file_state(file)] for file in files], duckdb.__version__]
    with work_folder(out, part, identity, threads, memory) as (scratch, con):
        with duckdb_io.plain_errors(con, f"reading {', '.join(paths[:3])}"):
            staged, unreadable = _judge(con, card, paths, scratch, part)
        if part is not None:
            return None
        shown = "{'hash': md5(concat(url, caption)), 'url': left(url, 200), 'caption': left(caption, 200)}"
        counts_by_reason = con.sql(
            f"SELECT {REASON}, count(*), min({shown}, {SAMPLES}) FILTER ({REASON} IS NOT NULL) FROM "
            f"{duckdb_io.parquet(staged)} GROUP BY 1"
        ).fetchall()
        counts = {reason: count for reason, count, _ in counts_by_reason}
        shown_of = {reason: some for reason, _, some in counts_by_reason if reason not in (None, REPEATED)}
        samples = {r: [{key: one[key] for key in ("url", "caption")} for one in some] for r, some in shown_of.items()}
        n_kept = counts.pop(None, 0)
        if not n_kept:
            why = "Are url_column and caption_column swapped?"
            if set(counts) == {"not_wanted"}:
                why = "`where`, `only` or `subset` of the card take none"
            raise UserError(
                f"no usable row in {', '.join(paths[:3])}: {counted(counts) if counts else 'it is empty'}, "
                f"{unreadable} unreadable lines. {why}"
            )
        order = f"ORDER BY md5({ROW} || ',{seed}'), {ROW}" if shuffle else f"ORDER BY {ROW}"
        usable = f"SELECT * EXCLUDE ({ROW}, {REASON}) FROM {duckdb_io.parquet(staged)} WHERE {REASON} IS NULL {order}"
        duckdb_io.write_parquet(con, usable, out, "prepare")
    if unreadable:
        counts["unreadable_line"] = unreadable
    return Fragment("prepare", card.name, n_kept + sum(counts.values()), n_kept, counts, notes={"samples": samples})


def _judge(
    con: duckdb.DuckDBPyConnection, card: SourceCard, paths: Sequence[str], scratch: Path, part: Part
) -> tuple[list[Path], int]:
    """Write a part's rows with the verdict on each; return the files of all blocks, and how many lines are broken."""
    with locked(scratch / "plan.lock"):
        listed, unreadable = relation(card, paths, scratch)
        if card.subset:
            con.execute(f"CREATE TEMP TABLE subset AS {_subset(card, scratch)}")
    con.execute(f"CREATE TEMP VIEW listed AS SELECT * FROM {listed}")
    types, selected = {row[0]: row[1] for row in con.sql("DESCRIBE listed").fetchall()}, []
    guessed = guessed_columns(con, card, types)
    if guessed != card:
        say(f"{paths[0]}: taking {guessed.url_column} for the URLs, {guessed.caption_column} for the captions")
        card = guessed
    if card.where:
        # a text file's columns are all text
        is_text = set(types.values()) == {"VARCHAR"}
        selected.append(where_condition(con, card.where, types, is_text))
    ((rows,),) = con.sql("SELECT count(*) FROM listed").fetchall()
    blocks = [scratch / f"block-{number:05d}.parquet" for number in range(1 + rows // ROWS)]
    for number in share(range(len(blocks)), part):
        if not blocks[number].exists():
            query = judged_rows(card, types, paths[0], selected, (number, len(blocks)))
            duckdb_io.write_parquet(con, query, blocks[number], f"reading {paths[0]}")
    return blocks, unreadable


def _subset(card: SourceCard, scratch: Path) -> str:
    """Return SQL of the values of ``subset_on`` in the second list, as text."""
    assert card.subset and card.subset_on
    second = SourceCard(card.name, list=card.subset, columns=card.subset_columns, obtain=card.obtain)
    try:
        folder = scratch / "subset"
        folder.mkdir(exist_ok=True)
        second_list, _ = relation(second, list_files(second), folder)
    except UserError as error:
        raise UserError(f"subset of '{card.name}': {error}") from error
    value = f"CAST({duckdb_io.sql_identifier(card.subset_on)} AS VARCHAR)"
    return f"SELECT DISTINCT {value} AS value FROM {second_list} WHERE {value} IS NOT NULL"


if __name__ == "__main__":
    run_command(main, PrepareConfig)
