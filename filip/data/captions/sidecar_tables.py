"""Group the captions of equal pictures, and build the rows of side-cars."""

from __future__ import annotations

from typing import Any

import duckdb

from filip.data.sidecar import group_id


def sidecar_row(rows: list[dict[str, Any]], origins: list[str], source: str) -> dict[str, Any]:
    """Return an image's row: its captions, and then the accepted translations of each.

    rows: the captions in order (``nth``), each once or once per accepted translation (``back``, by pivot
    ``pivot_index``; None where there is none). origins: where the captions come from, then of the pivots.
    """
    first = rows[0]
    captions = list({row["nth"]: row["caption"] for row in rows}.values())
    translated = [row for row in rows if row["back"] is not None]
    root = first["root"]
    if root is None:
        group = group_id(first["caption"], source, first["group_value"])
    elif root[0] in "=#":
        group = group_id("", source if root[0] == "=" else "image", root[1:])
    else:
        group = group_id(root)
    return {
        "key": first["key"],
        "captions": [*captions, *(row["back"] for row in translated)],
        "origins": [origins[0]] * len(captions) + [origins[1 + row["pivot_index"]] for row in translated],
        "group": group,
    }


PLAIN = "trim(lower(regexp_replace({}, '[^\\p{{L}}\\p{{N}}]+', ' ', 'g')))"  # filip.text.words.plain, in SQL
# Two images are one group already if these are equal: the card's group, or the words of the first caption.
CONTENT = f"coalesce('=' || group_value, nullif({PLAIN.format('caption')}, ''), caption)"
# A picture with more captions than this is "no longer available", or a logo: it only groups exact copies.
MOST_CAPTIONS = 10


def find_same_images(con: duckdb.DuckDBPyConnection, rows: str) -> None:
    """Group the captions of a picture that a source has several times: its files are the same, byte for byte.

    Otherwise a batch with two of its copies would take the picture for a negative of itself. Makes two tables of the
    images in ``rows`` (image, nth, caption, group_value).

    merged (content, root): contents that share pictures, directly or through others, and one that represents
    all of them. crowds (image, root): pictures with too many contents.
    """
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE same AS
            SELECT * FROM (
                SELECT DISTINCT image, {CONTENT} AS content FROM {rows} WHERE nth = 1 AND image IS NOT NULL)
            QUALIFY count(*) OVER (PARTITION BY image) > 1"""
    )
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE crowds AS
            SELECT image, '#' || image AS root FROM same GROUP BY image HAVING count(*) > {MOST_CAPTIONS}"""
    )
    con.execute("DELETE FROM same WHERE image IN (SELECT image FROM crowds)")
    con.execute("CREATE OR REPLACE TEMP TABLE merged AS SELECT DISTINCT content, content AS root FROM same")
    while True:
        changed = con.execute(
            """UPDATE merged SET root = least_root FROM (
                SELECT s.content AS found, min(i.root) AS least_root FROM same s JOIN (
                    SELECT image, min(root) AS root FROM same JOIN merged USING (content) GROUP BY image
                ) i USING (image) GROUP BY s.content
            ) WHERE content = found AND least_root < root"""
        ).fetchall()[0][0]
        if not changed:
            return
