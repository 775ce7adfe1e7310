"""Rows in are rows out and reasons, for damaged sets in every layout."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from filip.data.ingest import IngestConfig, _list_images
from filip.sets.image_set import open_images
from filip.sets.layout import Reading
from filip.sets.layouts import recognise
from tests.data.test_ingest import card
from tests.sets.damage import Damaged, Draw
from tests.sets.damaged import LAYOUTS

SETS = int(os.environ.get("FILIP_SETS", 300))  # 10,000 before a release
IN_INGEST = 3  # sets of each layout; DuckDB starts for each


def in_memory(made: Damaged) -> dict[str, list[str]]:
    found = open_images(Reading(made.place))
    assert dict(found.account.counts) == dict(made.reasons)
    assert len(found) + found.account.counts.total() == made.count
    assert all(found.read(item) for item in found.items)
    return {item.name: item.captions for item in found.items}


def in_ingest(made: Damaged, work: Path) -> dict[str, list[str]]:
    """Run ingest on the list, in which DuckDB gathers the rows of an image."""
    reading = Reading(made.place)
    layout, parts, reading = recognise(reading)
    work.mkdir()
    config = IngestConfig("mine", out=str(work))
    _list_images(card(made.place), reading, layout, parts, work / "list.parquet", work, config)
    rows = pq.read_table(work / "list.parquet").to_pylist()
    assert len(rows) == made.count
    return {row["url"]: row["captions"] for row in rows if row["_problem"] is None and row["captions"]}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_goes_in_comes_out_or_has_a_reason(tmp_path: Path, layout: str) -> None:
    for number in range(-(-SETS // len(LAYOUTS))):
        place = tmp_path / str(number)
        made = LAYOUTS[layout](place / "own", Draw(number))
        answers = [in_memory(made)]
        if number < IN_INGEST and "missing_file" not in made.reasons:
            answers.append(in_ingest(made, place / "work"))
        for found in answers:
            if not made.ordered:
                found = {name: sorted(captions) for name, captions in found.items()}
                made.images = {name: sorted(captions) for name, captions in made.images.items()}
            assert found == made.images, f"{layout}, seed {number}: {made.place}"
