"""Side-cars by columns: tables from the sorted rows of many shards, without an object per row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filip.data.captions.same_images import group_of_root
from filip.data.sidecar import SCHEMA, group_id


def rows_by_shard(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, pa.Table]]:
    """Each shard and its rows, from batches that are sorted by their column shard."""
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
    """A row per image: its captions, then what came of translating each of them.

    rows: one per caption, those of an image in a row. origins: of the captions, then of the pivots' translations.
    """
    rows = rows.combine_chunks()
    keys = rows["key"].combine_chunks()
    is_first = np.concatenate([[True], pc.not_equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)])
    image = np.cumsum(is_first) - 1
    translations, pivots = (rows[name].combine_chunks() for name in ("back_translations", "pivots"))
    owners = np.concatenate([image, image[pc.list_parent_indices(translations)]])
    order = np.argsort(owners, kind="stable")
    texts = pa.concat_arrays([rows["caption"].combine_chunks(), pc.list_flatten(translations)]).take(order)
    origin = np.concatenate([np.zeros(len(rows), int), 1 + pc.list_flatten(pivots).to_numpy()])[order]
    ends = np.concatenate([[0], np.cumsum(np.bincount(owners))])
    first = rows.filter(is_first)
    described = zip(*(first[name].to_pylist() for name in ("caption", "group_value", "root")), strict=True)
    groups = [
        group_id(caption, source, value) if root is None else group_of_root(root, source)
        for caption, value, root in described
    ]
    lists = [pa.ListArray.from_arrays(ends, values) for values in (texts, pa.array(origins).take(origin))]
    return pa.table([first["key"], *lists, pa.array(groups, pa.int64())], SCHEMA)
