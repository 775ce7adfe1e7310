"""Build side-cars column by column, from the sorted rows of many shards, without an object per row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filip.data.sidecar import SCHEMA, group_id


def rows_by_shard(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, pa.Table]]:
    """Yield each shard and its rows, from batches that are sorted by the column ``shard``."""
    current = ""
    pieces: list[pa.RecordBatch] = []
    for batch in batches:
        runs = pc.run_end_encode(batch["shard"])
        start = 0
        for shard, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
            if pieces and shard != current:
                yield current, pa.Table.from_batches(pieces)
                pieces = []
            current = shard
            pieces.append(batch.slice(start, end - start))
            start = end
    if pieces:
        yield current, pa.Table.from_batches(pieces)


def sidecar_table(rows: pa.Table, origins: list[str], source: str) -> pa.Table:
    """Return a row per image: its captions, then the accepted translations of each.

    rows: an image's together, its captions in order (``nth``), each once or once per accepted translation
    (``back``, by pivot ``pivot_index``; null where there is none). origins: where the
    captions, then of the pivots.
    """
    rows = rows.combine_chunks()
    is_first = _differs_from_last(rows["key"])
    is_caption = is_first | _differs_from_last(rows["nth"])
    image = np.cumsum(is_first) - 1
    is_translated = rows["back"].combine_chunks().is_valid().to_numpy(zero_copy_only=False)
    owners = np.concatenate([image[is_caption], image[is_translated]])
    order = np.argsort(owners, kind="stable")
    captions, translations = rows["caption"].filter(pa.array(is_caption)), rows["back"].drop_null()
    texts = pa.chunked_array([*captions.chunks, *translations.chunks]).combine_chunks().take(order)
    pivots = rows["pivot_index"].drop_null().to_numpy()
    origin = np.concatenate([np.zeros(len(captions), int), 1 + pivots])[order]
    ends = np.concatenate([[0], np.cumsum(np.bincount(owners))])
    first = rows.filter(is_first)
    described = zip(*(first[name].to_pylist() for name in ("caption", "group_value", "root")), strict=True)
    groups = [
        group_id(caption, source, value) if root is None else group_of_root(root, source)
        for caption, value, root in described
    ]
    lists = [pa.ListArray.from_arrays(ends, values) for values in (texts, pa.array(origins).take(origin))]
    return pa.table([first["key"], *lists, pa.array(groups, pa.int64())], SCHEMA)


def _differs_from_last(column: pa.ChunkedArray) -> np.ndarray:
    """Return bool [rows]: whether a value differs from the row before; true for the first."""
    values = column.combine_chunks()
    return np.concatenate([[True], pc.not_equal(values[1:], values[:-1]).to_numpy(zero_copy_only=False)])


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


def group_of_root(root: str, source: str) -> int:
    """Return the group id of a root."""
    if root[0] in "=#":
        return group_id("", source if root[0] == "=" else "image", root[1:])
    return group_id(root)
