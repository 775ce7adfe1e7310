"""Captions of an image from sorted rows, against the same thing row by row."""

import random
from itertools import groupby

import pyarrow as pa
import pytest

from filip.data.ingesting.listing import group_captions

SCHEMA = pa.schema({"part": pa.int64(), "n": pa.int64(), "url": pa.string(), "captions": pa.list_(pa.string())})


def some_rows(rng: random.Random) -> list[dict]:
    """Return runs of one to four rows, each with up to three captions, some of which its image has twice."""
    places = [(part, n) for part in range(3) for n in sorted(rng.sample(range(40), 20))]
    return [
        {
            "part": part,
            "n": n,
            "url": f"row {rng.random()}",
            "captions": rng.choices(["a dog", "a cat", "", "★"], k=rng.randint(0, 3)),
        }
        for part, n in places
        for _ in range(rng.choice([1, 1, 2, 4]))
    ]


@pytest.mark.parametrize("once", [True, False])
def test_rows_of_an_image_become_one_wherever_a_batch_ends(once: bool) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        rows = some_rows(rng)
        wanted = []
        for _, run in groupby(rows, key=lambda row: (row["part"], row["n"])):
            first, *others = run
            captions = [caption for row in (first, *others) for caption in row["captions"]]
            wanted.append({**first, "captions": list(dict.fromkeys(captions)) if once else captions})
        table = pa.Table.from_pylist(rows, SCHEMA)
        size = rng.choice([1, 3, 17, 1000])
        found = list(group_captions(table.to_reader(max_chunksize=size), by=("part", "n"), once=once))
        assert all(part.schema == SCHEMA for part in found)
        assert pa.concat_tables(found).to_pylist() == wanted


def test_a_caption_a_row_becomes_a_list_and_no_rows_become_an_empty_table() -> None:
    rows = pa.table({"image": [1, 1, 2], "captions": ["a", "b", "a"]})
    found = pa.concat_tables(group_captions(rows.to_reader(max_chunksize=1), by=("image",)))
    assert found.to_pylist() == [{"image": 1, "captions": ["a", "b"]}, {"image": 2, "captions": ["a"]}]
    (empty,) = group_captions(rows.slice(0, 0).to_reader(), by=("image",))
    assert len(empty) == 0 and empty.schema == found.schema
