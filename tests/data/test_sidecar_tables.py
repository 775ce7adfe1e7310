"""Side-cars by columns, against the same thing row by row."""

import random
from itertools import groupby
from typing import Any

import pyarrow as pa

from filip.data.captions.sidecar_tables import group_of_root, rows_by_shard, sidecar_table
from filip.data.sidecar import SCHEMA, group_id

ORIGINS = ["original", "engine:de", "engine:ru"]
TEXTS = ("shard", "key", "caption", "group_value", "root", "back")
COLUMNS = pa.schema(dict.fromkeys(TEXTS, pa.string()) | {"nth": pa.int64(), "pivot_index": pa.int32()})


def some_rows(rng: random.Random) -> list[dict[str, Any]]:
    """Return images of one to three captions, each with up to two translations: a row each, or one with null."""
    rows = []
    for image in range(60):
        for nth in range(rng.choice([1, 1, 2, 3])):
            caption = {
                "shard": f"{image // 13:05d}",
                "key": f"{image:09d}",
                "nth": nth + 1,
                "caption": rng.choice(["a dog", "A dog!", "★", "", f"caption {image}"]),
                "group_value": rng.choice([None, "7"]),
                "root": rng.choice([None, None, "=7", "#abc", "a dog"]),
            }
            pivots = sorted(rng.sample(range(2), rng.randint(0, 2)))
            rows += [{**caption, "pivot_index": pivot, "back": f"translation {rng.random()}"} for pivot in pivots] or [
                {**caption, "pivot_index": None, "back": None}
            ]
    return rows


def row_by_row(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    results = []
    for key, group in groupby(rows, key=lambda row: row["key"]):
        of_image = list(group)
        first = of_image[0]
        captions = [next(rows)["caption"] for _, rows in groupby(of_image, key=lambda row: row["nth"])]
        translated = [row for row in of_image if row["back"] is not None]
        results.append(
            {
                "key": key,
                "captions": captions + [row["back"] for row in translated],
                "origins": ["original"] * len(captions) + [ORIGINS[1 + row["pivot_index"]] for row in translated],
                "group": group_of_root(first["root"], "source")
                if first["root"] is not None
                else group_id(first["caption"], "source", first["group_value"]),
            }
        )
    return results


def test_the_captions_of_an_image_come_first_and_then_the_translations_of_each() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        rows = some_rows(rng)
        whole = pa.Table.from_pylist(rows, COLUMNS)
        # that end within shards and images
        batches = whole.to_batches(max_chunksize=rng.choice([1, 5, 17, 1000]))
        tables = {shard: sidecar_table(result, ORIGINS, "source") for shard, result in rows_by_shard(batches)}
        assert list(tables) == sorted({row["shard"] for row in rows})
        for shard, table in tables.items():
            assert table.schema == SCHEMA
            assert table.to_pylist() == row_by_row([row for row in rows if row["shard"] == shard])
    assert list(rows_by_shard([])) == []
