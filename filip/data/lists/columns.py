"""Select columns and rows of a list as the download needs them, and find the rows that cannot be used.

A card selects rows by ``only`` and ``subset``, or by an SQL condition (``where``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import duckdb

from filip.common.errors import UserError, first_line
from filip.data.cards import SourceCard
from filip.data.lists import duckdb_io
from filip.sets.columns import CAPTION_COLUMNS, URL_COLUMNS, usual_column
from filip.sets.table import SAMPLE

ROW, REASON = "_filip_row_", "_filip_reason_"  # columns that this stage adds to the list's
REPEATED = "repeated_row"
# img2dataset writes columns of these names itself and refuses a list that has them.
RESERVED = ["key", "url", "caption", "status", "error_message", "width", "height", "original_width"]
RESERVED += ["original_height", "exif", "md5", "sha256", "sha512", "_row_", "_shard_", "_wanted_", ROW, REASON]
AS_JSON = ["VARCHAR", "VARCHAR[]", "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "FLOAT", "DOUBLE"]
AS_JSON += ["FLOAT[]", "DOUBLE[]", "FLOAT[][]", "DOUBLE[][]"]  # boxes, as of faces
LOOKED_AT = 100_000  # values that decide whether a text column holds numbers


def judged_rows(
    card: SourceCard, types: dict[str, str], where: str, selected: Sequence[str], block: tuple[int, int]
) -> str:
    """Return SQL of the rows of a block with their position and the reason to drop them, if any.

    where: name of the list, for messages. selected: further SQL conditions that a wanted row meets. block: its number,
    and how many there are: equal URLs are in one.
    """
    _check_columns(card, types, where)
    # A list from elsewhere must not read this machine's files; a card with image_root means its folder.
    schemes = "https?|file" if card.image_root else "https?"
    conditions = [
        f"CAST({duckdb_io.sql_identifier(column)} AS VARCHAR) IS NOT DISTINCT FROM {duckdb_io.sql_literal(value)}"
        for column, value in card.only.items()
    ]
    conditions += selected
    if card.subset_on:
        conditions.append(
            f"coalesce(CAST({duckdb_io.sql_identifier(card.subset_on)} AS VARCHAR), '') IN (SELECT value FROM subset)"
        )
    of_block = f"hash({duckdb_io.sql_identifier(card.url_column)}) % {block[1]} = {block[0]}"
    # The first of several rows with equal URL and caption stays: no pair is fetched twice or its own negative.
    first = f"SELECT min({ROW}) FROM judged WHERE {REASON} IS NULL GROUP BY md5_number(url || chr(10) || caption)"
    return f"""
        WITH judged AS MATERIALIZED (SELECT * EXCLUDE (_wanted_), CASE
            WHEN NOT _wanted_ THEN 'not_wanted'
            WHEN url IS NULL OR trim(url) = '' THEN 'no_url'
            WHEN NOT regexp_matches(url, '^({schemes})://[^\\s/]*(/\\S*)?$', 'i') THEN 'malformed_url'
            WHEN caption IS NULL OR trim(caption) = '' THEN 'no_caption'
        END AS {REASON}
        FROM (
            SELECT {ROW}, {" AND ".join(conditions) or "true"} AS _wanted_, {", ".join(_columns(card, types))}
            FROM (SELECT *, row_number() OVER () AS {ROW} FROM listed) WHERE {of_block}
        ))
        SELECT * REPLACE (
            CASE WHEN {REASON} IS NULL AND {ROW} NOT IN ({first}) THEN '{REPEATED}' ELSE {REASON} END AS {REASON}
        ) FROM judged
    """


def guessed_columns(con: duckdb.DuckDBPyConnection, card: SourceCard, types: dict[str, str]) -> SourceCard:
    """Return the card with the columns of the list ``listed``, where it does not have those that the card names.

    They are found by their usual names, as in a set on disk; else the only column of URLs and the only other one with
    several words in a cell are taken.
    """
    start = con.sql(f"SELECT * FROM listed LIMIT {SAMPLE}").fetchall()
    cells = {name: [str(row[n]) for row in start if row[n] is not None] for n, name in enumerate(types)}
    if card.url_column == "url" and "url" not in types:
        urls = [name for name in types if cells[name] and all(re.match("https?://", cell) for cell in cells[name])]
        url = usual_column([*types], URL_COLUMNS) or (urls[0] if len(urls) == 1 else None)
        card = replace(card, url_column=url or card.url_column)
    if card.caption_column == "caption" and not card.caption_columns and "caption" not in types:
        wordy = [n for n in types if n != card.url_column and any(" " in cell.strip() for cell in cells[n])]
        caption = usual_column([*types], CAPTION_COLUMNS) or (wordy[0] if len(wordy) == 1 else None)
        card = replace(card, caption_column=caption or card.caption_column)
    return card


def _check_columns(card: SourceCard, types: dict[str, str], where: str) -> None:
    needed = [("url_column", card.url_column)]
    needed += [("caption_columns", c) for c in card.caption_columns] or [("caption_column", card.caption_column)]
    needed += [("only", column) for column in card.only]
    needed += [("subset_on", card.subset_on)] if card.subset_on else []
    for key, column in needed:
        if column not in types:
            raise UserError(
                f"{where} has no column '{column}' ({key}); its columns are {', '.join(types)}. Set {key}=NAME"
            )


def _columns(card: SourceCard, types: dict[str, str]) -> list[str]:
    """Return the SELECT list: url and caption as strings, then every other column under a name that is free."""
    url = card.url_column
    captions = card.caption_columns or [card.caption_column]
    prefix = f"{duckdb_io.sql_literal(image_root(card.image_root))} || " if card.image_root else ""
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


def image_root(root: str) -> str:
    """Return ``root`` as a URL ending in a slash; a folder on this machine becomes ``file:///...``."""
    url = root if "://" in root else Path(root).resolve().as_uri()
    return url.rstrip("/") + "/"


def cleaned(column: str, card: SourceCard) -> str:
    """Return SQL of one caption column as text, after the card's cleaning."""
    text = f"CAST({duckdb_io.sql_identifier(column)} AS VARCHAR)"
    for step in card.caption_cleaning:
        if step == "url_encoded":
            text = f"url_decode(replace({text}, '+', ' '))"
        if step == "html_tags":
            text = f"regexp_replace({text}, '<[^<>]+>', ' ', 'g')"
    return text


def where_condition(
    con: duckdb.DuckDBPyConnection, where: str, types: dict[str, str], is_text: bool, setting: str = "where"
) -> str:
    """Return SQL of the card's ``where`` for the relation ``listed``, as a truth value without unknowns.

    setting: where the condition comes from, for messages.
    is_text: the list is a text file, with columns of text: the ones that hold numbers are compared as numbers.
    Raises UserError, before any work, for anything that is not a condition on these columns.
    """
    condition = _with_numbers(where, _numeric(con, list(types))) if is_text else where
    columns = ", ".join(f"{duckdb_io.sql_identifier(name)} {kind}" for name, kind in types.items())
    try:
        whole = len(duckdb.extract_statements(f"SELECT ({condition})")) == 1
        # apart, where it sees these columns alone: somebody else's card must not read this machine's files
        with duckdb.connect(config={"enable_external_access": False}) as apart:
            apart.execute(f"CREATE TABLE listed ({columns})")
            described = f"DESCRIBE SELECT ({condition}) FROM listed WHERE ({condition})"
            kind = apart.sql(described).fetchall()[0][1] if whole else None
            volatile = whole and _volatile(apart, condition) - {name.lower() for name in types}
    except duckdb.Error as error:
        problem = first_line(error).split(": ", 1)[-1]
        raise UserError(
            f"{setting}: {where!r} cannot be evaluated: {problem.rstrip('!')}. There are the columns "
            f"{', '.join(f'{name} ({types[name]})' for name in types)}; write e.g. "
            "similarity > 0.3"
        ) from error
    if kind != "BOOLEAN":
        raise UserError(
            f"{setting}: {where!r} is {kind or 'more than one expression'}, but must be true or false for a row"
        )
    if volatile:
        raise UserError(
            f"{setting}: {where!r} has {min(volatile)}, which would choose other rows each time; a sample of a tenth "
            "is hash(url) % 10 = 0"
        )
    return f"coalesce(({condition}), false)"


def _volatile(con: duckdb.DuckDBPyConnection, condition: str) -> set[str]:
    """Return the functions in a condition that give another value each time: chances and clocks."""
    (tree,) = con.execute("SELECT json_serialize_sql(?)", [f"SELECT ({condition})"]).fetchall()[0]
    names = set(re.findall(r'"(?:function_name|column_names)":\[?"(\w+)"', tree.lower()))
    functions = con.sql(
        "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability = 'VOLATILE' OR "
        "stability = 'CONSISTENT_WITHIN_QUERY' AND len(parameters) = 0"
    ).fetchall()
    return names & {name for (name,) in functions}


def _with_numbers(where: str, numeric: dict[str, str]) -> str:
    """Return the condition with the names of these columns replaced by their values as numbers of a type."""
    names = {form: name for name in numeric for form in (name.lower(), duckdb_io.sql_identifier(name).lower())}
    text = where.encode()  # DuckDB counts bytes
    starts = [offset for offset, _ in duckdb.tokenize(where)]
    pieces = [text[start:end].decode() for start, end in pairwise([0, *starts, len(text)])]
    for place, piece in enumerate(pieces):
        name = names.get(piece.strip().lower())
        if name is not None:
            pieces[place] = f"TRY_CAST({duckdb_io.sql_identifier(name)} AS {numeric[name]}) "
    return "".join(pieces)


def _numeric(con: duckdb.DuckDBPyConnection, columns: list[str]) -> dict[str, str]:
    """Return the text columns of ``listed`` with numbers as first values: BIGINT for integers, else DOUBLE."""
    sums = ", ".join(
        f"count({value}) > 0 AND count({value}) = count(TRY_CAST({value} AS DOUBLE)), "
        f"bool_and(regexp_full_match({value}, '[+-]?[0-9]+') AND TRY_CAST({value} AS BIGINT) IS NOT NULL)"
        for value in (f"nullif(trim({duckdb_io.sql_identifier(name)}), '')" for name in columns)
    )
    counts = con.sql(f"SELECT {sums} FROM (SELECT * FROM listed LIMIT {LOOKED_AT})").fetchall()[0]
    kinds = zip(columns, counts[::2], counts[1::2], strict=True)
    return {name: "BIGINT" if integers else "DOUBLE" for name, numbers, integers in kinds if numbers}
