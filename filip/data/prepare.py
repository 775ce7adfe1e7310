"""Any list of URLs and captions → ``list.parquet`` with the columns ``url``, ``caption`` and whatever else it had.

    python -m filip.data.prepare source=cc12m list=cc12m.tsv out=list.parquet
    python -m filip.data.prepare source=my_pairs.csv.gz url_column=link caption_column=alt out=list.parquet

Reads TSV, CSV, JSON lines (plain, .gz, .zst, .bz2), Parquet, globs of them, and Karpathy's split files of COCO
and Flickr30k. Lines that cannot be read, and rows without a caption or a usable URL, are dropped and counted.
"""

from __future__ import annotations

import bz2
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from filip.command import MISSING, option, run_command
from filip.data.cards import SourceCard, load_source
from filip.data.funnel import Fragment, write_fragment
from filip.data.lists import duckdb_io
from filip.data.lists.karpathy import image_root, read_karpathy
from filip.errors import UserError
from filip.files import scratch_folder
from filip.progress import say

SUFFIXES = {
    ".parquet": "parquet",
    ".tsv": "tsv",
    ".txt": "tsv",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
COMPRESSIONS = (".gz", ".zst", ".bz2")
ROW, REASON = "_row_", "_drop_reason_"  # columns of this stage, beside those of the list
# img2dataset writes columns of these names itself and refuses a list that has them.
RESERVED = ["key", "url", "caption", "status", "error_message", "width", "height", "original_width"]
RESERVED += ["original_height", "exif", "md5", "sha256", "sha512"]
AS_JSON = ("VARCHAR", "VARCHAR[]", "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "FLOAT", "DOUBLE")


@dataclass
class PrepareConfig:
    source: str = option(
        MISSING, "source card (name or path), or straight a list: Parquet, TSV, CSV, JSON lines"
    )
    out: str = option(MISSING, "Parquet file to write")
    list: str | None = option(None, "path or glob of the list; default: the card's")
    url_column: str | None = option(None, "name of the URL column; default: the card's, else 'url'")
    caption_column: str | None = option(
        None, "name of the caption column; default: the card's, else 'caption'"
    )
    subset: str | None = option(None, "path of the list of rows to take; default: the card's, if it has one")
    funnel: str | None = option(None, "funnel fragment to write, JSON")
    shuffle: bool = option(
        True, "shuffle the rows: shards stay mixed, and no host is hit by all workers at once"
    )
    seed: int = option(0, "of the shuffle")
    threads: int = option(2, "DuckDB threads")
    memory: str = option("1GB", "DuckDB memory; the rest spills to disk beside `out`")


def main(config: PrepareConfig) -> None:
    """Turn a list of URLs and captions in any of the known formats into list.parquet."""
    card = resolve_card(config)
    fragment = prepare(
        card,
        config.out,
        shuffle=config.shuffle,
        seed=config.seed,
        threads=config.threads,
        memory=config.memory,
    )
    if config.funnel:
        write_fragment(config.funnel, fragment)
    print(f"{config.out}: {fragment.n_out:,} of {fragment.n_in:,} rows; dropped {dict(fragment.dropped)}")
    if card.expected_count and abs(fragment.n_in - card.expected_count) > 0.05 * card.expected_count:
        say(f"note: the card expects about {card.expected_count:,} rows, this list has {fragment.n_in:,}")


def resolve_card(config: PrepareConfig) -> SourceCard:
    """The card of ``config.source``; a bare list gets a card with the default rules."""
    is_list = any(suffix in Path(config.source).suffixes for suffix in SUFFIXES) or "*" in config.source
    card = (
        SourceCard(name=Path(config.source).name.split(".")[0], list=config.source)
        if is_list
        else load_source(config.source)
    )
    return replace(
        card,
        list=config.list or card.list,
        subset=config.subset or card.subset,
        url_column=config.url_column or card.url_column,
        caption_column=config.caption_column or card.caption_column,
    )


def prepare(
    card: SourceCard,
    out: str | Path,
    *,
    shuffle: bool = True,
    seed: int = 0,
    threads: int = 2,
    memory: str = "1GB",
) -> Fragment:
    """Write ``out`` (Parquet: url and caption as strings, then the other columns of the list) and account for it.

    Raises UserError when the list is missing, a named column is not in it, or nothing is left.
    """
    paths = list_files(card)
    with scratch_folder(out) as scratch:
        con = duckdb_io.connect(threads, memory, scratch)
        staged = scratch / "staged.parquet"
        try:
            _stage(con, card, paths, scratch, staged)
        except (duckdb.InvalidInputException, duckdb.BinderException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk; without a number it is DuckDB's, by way of Arrow
            # One stray carriage return or odd quote, and the strict reader gives up on the whole list.
            con.close()
            con = duckdb_io.connect(threads, memory, scratch)
            try:
                _stage(con, card, paths, scratch, staged, strict=False)
            except (duckdb.Error, OSError) as problem:
                detail = " ".join(str(problem).split())[:300]
                raise UserError(f"{', '.join(paths[:3])} cannot be read: {detail}") from problem
        unreadable = _rejected_lines(con)
        counts = dict(
            con.sql(f"SELECT {REASON}, count(*) FROM {duckdb_io.parquet(staged)} GROUP BY 1").fetchall()
        )
        kept = counts.pop(None, 0)
        if not kept:
            raise UserError(
                f"no usable row in {', '.join(paths[:3])}: {counts or 'it is empty'}, {unreadable} unreadable "
                "lines. Are url_column and caption_column swapped?"
            )
        # Of rows that say the same of the same URL the first stays: none is fetched twice, none is its own negative.
        usable = f"{duckdb_io.parquet(staged)} WHERE {REASON} IS NULL"
        first = f"SELECT min({ROW}) FROM {usable} GROUP BY md5_number(url || chr(10) || caption)"
        order = f"ORDER BY md5({ROW} || ',{seed}'), {ROW}" if shuffle else f"ORDER BY {ROW}"
        written = duckdb_io.write_parquet(
            con,
            f"SELECT * EXCLUDE ({ROW}, {REASON}) FROM {usable} AND {ROW} IN ({first}) {order}",
            out,
            "prepare",
        )
        con.close()
    counts["repeated_row"], kept = kept - written, written
    if unreadable:
        counts["unreadable_line"] = unreadable
    return Fragment("prepare", card.name, kept + sum(counts.values()), kept, counts)


def _stage(
    con: duckdb.DuckDBPyConnection,
    card: SourceCard,
    paths: Sequence[str],
    scratch: Path,
    staged: Path,
    strict: bool = True,
) -> None:
    """Read the list once into ``staged``, with the verdict on each row beside it; counted and filtered later."""
    listed = relation(card, paths, scratch, strict=strict)
    con.execute(f"CREATE TEMP VIEW listed AS SELECT * FROM {listed}")
    if card.subset:
        con.execute(f"CREATE TEMP TABLE subset AS {_subset(card, scratch)}")
    duckdb_io.write_parquet(con, _select(card, _types(con), paths[0]), staged, "prepare")


def list_files(card: SourceCard) -> Sequence[str]:
    """The files that the card's ``list`` names. Raises UserError with how to obtain them when there are none."""
    if card.images and not card.list:
        raise UserError(
            f"source '{card.name}' has images of its own: `filip data ingest` reads them, not prepare"
        )
    if not card.list:
        raise UserError(
            f"source '{card.name}' ({card.path or 'given directly'}) has no list of URLs: give list=PATH. "
            f"How to obtain it: {' '.join(card.obtain.split()) or 'see its homepage ' + card.homepage}"
        )
    folder = Path(card.list)
    paths = sorted(glob(card.list)) if "*" in card.list else [card.list]
    if folder.is_dir():
        paths = sorted(str(p) for p in folder.glob("*.parquet"))
    missing = [path for path in paths if not Path(path).is_file()]
    if missing or not paths:
        raise UserError(
            f"no list of URLs at {missing[0] if missing else card.list}. "
            f"How to obtain it: {' '.join(card.obtain.split()) or 'give list=PATH'}"
        )
    return paths


def _format(card: SourceCard, path: str) -> str:
    if card.format != "auto":
        return card.format
    suffixes = [s.lower() for s in Path(path).suffixes if s.lower() not in COMPRESSIONS]
    if not suffixes or suffixes[-1] not in SUFFIXES:
        raise UserError(
            f"cannot tell the format of {path} by its name: end it in one of {', '.join(SUFFIXES)} "
            f"(optionally {', '.join(COMPRESSIONS)}) or set `format` in a source card"
        )
    return SUFFIXES[suffixes[-1]]


def _subset(card: SourceCard, scratch: Path) -> str:
    """SQL of the values of ``subset_on`` in the second list, as text."""
    assert card.subset and card.subset_on
    second = SourceCard(card.name, list=card.subset, columns=card.subset_columns, obtain=card.obtain)
    try:
        second_list = relation(second, list_files(second), scratch, count_rejects=False)
    except UserError as error:
        raise UserError(f"subset of '{card.name}': {error}") from error
    value = f"CAST({duckdb_io.sql_identifier(card.subset_on)} AS VARCHAR)"
    return f"SELECT DISTINCT {value} AS value FROM {second_list} WHERE {value} IS NOT NULL"


def relation(
    card: SourceCard, paths: Sequence[str], scratch: Path, count_rejects: bool = True, strict: bool = True
) -> str:
    """SQL that reads the list. ``ignore_errors`` with ``store_rejects`` lets bad lines be counted, not fatal."""
    kinds = {_format(card, path) for path in paths}
    if len(kinds) > 1:
        raise UserError(f"one list, one format: {card.list} has {', '.join(sorted(kinds))}")
    kind = kinds.pop()
    if kind == "karpathy":
        path = scratch / "karpathy.parquet"
        pq.write_table(read_karpathy(Path(paths[0]), card), path)
        return duckdb_io.parquet(path)
    if kind == "parquet":
        if strict:
            return duckdb_io.parquet(paths)
        copies = [scratch / f"{number}.parquet" for number in range(len(paths))]
        return duckdb_io.parquet([_valid_text(*pair) for pair in zip(paths, copies, strict=True)])
    plain = [_plain(path, scratch / f"{number:05d}") for number, path in enumerate(paths)]
    files = "[" + ", ".join(duckdb_io.sql_literal(str(path)) for path in plain) + "]"
    if kind == "jsonl":
        return _json_relation(files, card)
    tsv = kind == "tsv"
    options = [
        f"delim = {duckdb_io.sql_literal(chr(9) if tsv else ',')}",
        # Captions hold stray quotes; tab-separated lists (CC3M, CC12M) never quote fields.
        "quote = '', escape = ''" if tsv else "quote = '\"', escape = '\"'",
        f"header = {'true' if card.header and not card.columns else 'false'}",
        f"strict_mode = {str(strict).lower()}",
        f"all_varchar = true, ignore_errors = true, store_rejects = {count_rejects}, max_line_size = 10000000",
    ]
    if card.columns:
        names = ", ".join(duckdb_io.sql_literal(column) for column in card.columns)
        options.append(f"names = [{names}], auto_detect = true")
    return f"read_csv({files}, {', '.join(options)})"


def _json_relation(files: str, card: SourceCard) -> str:
    """SQL of JSON lines with the keys of all of them; lines that are no JSON object have no url.

    DuckDB's read_json guesses keys and types from the first lines: later keys vanish, and after many captions like
    "2014-05-12" all others are no dates and become NULL.
    """
    lines = f"read_ndjson_objects({files}, ignore_errors = true)"
    con = duckdb.connect()
    grouped = f"SELECT json_group_structure(json) FROM {lines} WHERE json_type(json) = 'OBJECT'"
    structure = json.loads(con.sql(grouped).fetchall()[0][0] or "{}")
    con.close()
    texts = {card.url_column, card.caption_column, *card.caption_columns}
    columns = []
    for key, kind in structure.items():
        value = f"json_extract(json, {duckdb_io.sql_literal(_json_pointer(key))})"
        if key in texts or kind == "VARCHAR":  # a title may be 1984 in one line
            value = f"CASE json_type({value}) WHEN 'NULL' THEN NULL ELSE {value} ->> '$' END"
        elif isinstance(kind, str) and kind != "JSON":
            value = f"TRY_CAST({value} AS {'BIGINT' if 'INT' in kind else kind})"
        elif kind == ["VARCHAR"]:
            value = f"TRY_CAST({value} AS VARCHAR[])"
        columns.append(f"{value} AS {duckdb_io.sql_identifier(key)}")
    return f"(SELECT {', '.join(columns) or 'NULL AS nothing'} FROM {lines})"


def _json_pointer(key: str) -> str:
    return "/" + key.replace("~", "~0").replace("/", "~1")


def _valid_text(path: str, target: Path) -> Path:
    """A copy of a Parquet file in which bytes that are no UTF-8 are replaced, as DuckDB refuses the whole file."""
    with pq.ParquetFile(path) as parquet:
        schema = parquet.schema_arrow
        with pq.ParquetWriter(target, schema) as writer:
            for batch in parquet.iter_batches():
                columns = [
                    _decoded(column) if pa.types.is_string(column.type) else column
                    for column in batch.columns
                ]
                writer.write_batch(pa.record_batch(columns, schema=schema))
    return target


def _decoded(column: pa.Array) -> pa.Array:
    raw = column.cast(pa.binary()).to_pylist()
    return pa.array([None if text is None else text.decode("utf-8", "replace") for text in raw], pa.string())


def _plain(path: str, folder: Path) -> Path:
    """DuckDB reads gzip and zstd itself; bzip2 (YFCC100M) is unpacked into a folder of its own first."""
    if not path.endswith(".bz2"):
        return Path(path)
    folder.mkdir(exist_ok=True)  # parts in several folders may have one name
    target = folder / Path(path).stem
    with bz2.open(path) as packed, open(target, "wb") as plain:
        shutil.copyfileobj(packed, plain, 1 << 22)
    return target


def _rejected_lines(con: duckdb.DuckDBPyConnection) -> int:
    try:
        return int(
            con.sql("SELECT count(DISTINCT (scan_id, file_id, line)) FROM reject_errors").fetchall()[0][0]
        )
    except duckdb.Error:  # the table exists only after a CSV was read
        return 0


def _types(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    return {row[0]: row[1] for row in con.sql("DESCRIBE listed").fetchall()}


def _select(card: SourceCard, types: dict[str, str], where: str) -> str:
    """SQL of the rows with their position and the reason to drop them, if any."""
    if card.format != "karpathy":
        _check_columns(card, types, where)
    # A list from elsewhere must not read this machine's files; a card with image_root means its own folder.
    schemes = "https?|file" if card.image_root else "https?"
    conditions = [
        f"CAST({duckdb_io.sql_identifier(column)} AS VARCHAR) IS NOT DISTINCT FROM {duckdb_io.sql_literal(value)}"
        for column, value in card.only.items()
    ]
    if card.subset_on:
        conditions.append(
            f"coalesce(CAST({duckdb_io.sql_identifier(card.subset_on)} AS VARCHAR), '') IN (SELECT value FROM subset)"
        )
    return f"""
        SELECT * EXCLUDE (_wanted_), CASE
            WHEN NOT _wanted_ THEN 'not_wanted'
            WHEN url IS NULL OR trim(url) = '' THEN 'no_url'
            WHEN NOT regexp_matches(url, '^({schemes})://[^\\s/]*(/\\S*)?$', 'i') THEN 'malformed_url'
            WHEN caption IS NULL OR trim(caption) = '' THEN 'no_caption'
        END AS {REASON}
        FROM (
            SELECT {ROW}, {" AND ".join(conditions) or "true"} AS _wanted_, {", ".join(_columns(card, types))}
            FROM (SELECT *, row_number() OVER () AS {ROW} FROM listed)
        )
    """


def _check_columns(card: SourceCard, types: dict[str, str], where: str) -> None:
    asked = [("url_column", card.url_column)]
    asked += [("caption_columns", c) for c in card.caption_columns] or [
        ("caption_column", card.caption_column)
    ]
    asked += [("only", column) for column in card.only]
    asked += [("subset_on", card.subset_on)] if card.subset_on else []
    for key, column in asked:
        if column not in types:
            raise UserError(
                f"{where} has no column '{column}' ({key}); its columns are {', '.join(types)}. Set {key}=NAME"
            )


def _columns(card: SourceCard, types: dict[str, str]) -> list[str]:
    """The SELECT list: url and caption as strings, then every other column under a name that is free."""
    karpathy = card.format == "karpathy"
    url = "url" if karpathy else card.url_column
    captions = ["caption"] if karpathy else card.caption_columns or [card.caption_column]
    root = card.image_root if card.image_root and not karpathy else None
    prefix = f"{duckdb_io.sql_literal(image_root(root))} || " if root else ""
    texts = [f"nullif(trim({cleaned(column, card)}), '')" for column in captions]
    columns = [
        f"{prefix}trim(CAST({duckdb_io.sql_identifier(url)} AS VARCHAR)) AS url",
        f"concat_ws('. ', {', '.join(texts)}) AS caption"
        if len(texts) > 1
        else f"{cleaned(captions[0], card)} AS caption",
    ]
    for column, kind in types.items():
        unwanted = card.extra_columns and column not in (*card.extra_columns, card.group_column)
        if column in (url, *captions) or unwanted:
            continue
        free = f"source_{column}" if column.lower() in RESERVED else column
        # img2dataset writes every column as JSON into the tar: dates, decimals, blobs become text.
        value = duckdb_io.sql_identifier(column)
        columns.append(
            f"{value if kind in AS_JSON else f'CAST({value} AS VARCHAR)'} AS {duckdb_io.sql_identifier(free)}"
        )
    return columns


def cleaned(column: str, card: SourceCard) -> str:
    """SQL of one caption column as text, after the card's cleaning."""
    text = f"CAST({duckdb_io.sql_identifier(column)} AS VARCHAR)"
    for step in card.caption_cleaning:
        if step == "url_encoded":
            text = f"url_decode(replace({text}, '+', ' '))"
        if step == "html_tags":
            text = f"regexp_replace({text}, '<[^<>]+>', ' ', 'g')"
    return text


if __name__ == "__main__":
    run_command(main, PrepareConfig)
