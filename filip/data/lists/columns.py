"""Select the columns of a list as the download needs them, and find the rows that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from filip.data.cards import SourceCard
from filip.data.lists import duckdb_io
from filip.errors import UserError

ROW, REASON = "_row_", "_drop_reason_"  # columns that this stage adds to those of the list
# img2dataset writes columns of these names itself and refuses a list that has them.
RESERVED = ["key", "url", "caption", "status", "error_message", "width", "height", "original_width"]
RESERVED += ["original_height", "exif", "md5", "sha256", "sha512"]
AS_JSON = ("VARCHAR", "VARCHAR[]", "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "FLOAT", "DOUBLE")


def judged_rows(card: SourceCard, types: dict[str, str], where: str, selected: Sequence[str] = ()) -> str:
    """Return SQL of the rows with their position and the reason to drop them, if any.

    where: name of the list, for messages. selected: further SQL conditions that a wanted row meets.
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
    asked += [("caption_columns", c) for c in card.caption_columns] or [("caption_column", card.caption_column)]
    asked += [("only", column) for column in card.only]
    asked += [("subset_on", card.subset_on)] if card.subset_on else []
    asked += [("uid_column", card.uid_column)] if card.uids else []
    for key, column in asked:
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
