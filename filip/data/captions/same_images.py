"""Group the captions of a picture that a source has several times.

Otherwise a batch with two of its copies would take the picture for a negative of itself. Pictures are the same if
their files are, byte for byte, as they were found.
"""

from __future__ import annotations

import duckdb

from filip.data.sidecar import group_id

PLAIN = "trim(lower(regexp_replace({}, '[^\\p{{L}}\\p{{N}}]+', ' ', 'g')))"  # filip.words.plain, in SQL
# Two images are one group already if these are equal: the card's group, or the words of the first caption.
CONTENT = f"coalesce('=' || group_value, nullif({PLAIN.format('caption')}, ''), caption)"
# A picture with more captions than this is "no longer available", or a logo: it only groups exact copies.
MOST_CAPTIONS = 10


def find_same_images(con: duckdb.DuckDBPyConnection, rows: str) -> None:
    """Make two tables of the images in ``rows`` (image, nth, caption, group_value).

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


def group_of_root(root: str, source: str) -> int:
    """Return the group id of a root."""
    if root[0] in "=#":
        return group_id("", source if root[0] == "=" else "image", root[1:])
    return group_id(root)
