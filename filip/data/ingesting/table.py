"""A folder of images and a table of paths and captions: CSV, TSV, JSON lines (plain or packed) or Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from filip.data.cards import SourceCard
from filip.data.ingesting.layout import (
    IMAGE_NAMES,
    Found,
    Layout,
    caption_columns,
    captions_of,
    files_in,
    group_of,
    inside,
)
from filip.data.ingesting.parquet import image_bytes_column
from filip.data.lists import duckdb_io
from filip.data.lists.reading import COMPRESSIONS, relation
from filip.errors import UserError

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
USUAL = ("metadata", "captions")  # of several tables in a folder, the one of such a name is taken


class Table(Layout):
    """Rows that name the same image are one image with several captions."""

    about = "a folder of images with a table (CSV, TSV, JSON lines, Parquet) of path and caption"

    def parts(self, images: Path, card: SourceCard) -> list[Path]:
        endings = [*TABLES, *(table + packed for table in TABLES for packed in COMPRESSIONS)]
        if images.is_file():
            # a list of Karpathy's or COCO's is a .json, which other layouts read
            return (
                [images]
                if images.name.lower().endswith((*endings, ".txt")) and not _has_bytes(images)
                else []
            )
        found = [path for path in files_in(images, endings, deep=False) if not _has_bytes(path)]
        if len(found) > 1:
            usual = [path for path in found if path.name.split(".")[0].lower() in USUAL]
            if len(usual) != 1:
                raise UserError(
                    f"{images} holds several tables ({', '.join(path.name for path in found[:5])}): name the one "
                    f"with the captions in the card, images: {found[0]}"
                )
            found = usual
        return found

    def find(self, part: Path, card: SourceCard, scratch: Path) -> Iterator[Found]:
        root = Path(card.image_root) if card.image_root else part.parent
        row = 0
        with pq.ParquetFile(_as_parquet(part, card, scratch)) as table:
            names = table.schema_arrow.names
            image = _image_column(names, card, part)
            columns = caption_columns(names, card, part)
            for batch in table.iter_batches(10_000):
                for record in batch.to_pylist():
                    wanted = all(str(record.get(column)) == value for column, value in card.only.items())
                    name = "" if record[image] is None else str(record[image]).strip()
                    path, problem = inside(root, name)
                    yield Found(
                        name or f"(a row without {image})",
                        captions_of(record, columns),
                        path or f"{part}#{row}",  # rows of one file are one image
                        group=group_of(record, card, part),
                        problem=problem if wanted else "not_wanted: `only` in the card",
                    )
                    row += 1


def _has_bytes(path: Path) -> bool:
    return path.suffix == ".parquet" and image_bytes_column(path) is not None


def _image_column(names: Sequence[str], card: SourceCard, part: Path) -> str:
    asked = [card.image_column] if card.image_column else IMAGE_NAMES
    found = next((name for name in asked if name in names), None)
    if found is None:
        raise UserError(
            f"{part} has no column {' or '.join(map(repr, asked))}; its columns are {', '.join(names)}. Say in the "
            "card which holds the paths: image_column: NAME"
        )
    return found


def _as_parquet(part: Path, card: SourceCard, scratch: Path) -> Path:
    """The table read by the same reader as lists of URLs; lines that it cannot read are left out."""
    staged = scratch / "table.parquet"
    plain = replace(card, format="tsv" if part.suffix == ".txt" else "auto")
    problem: Exception | None = None
    for strict in (True, False):
        con = duckdb_io.connect(2, "1GB", scratch)
        try:
            rows = relation(plain, [str(part)], scratch, count_rejects=False, strict=strict)
            duckdb_io.write_parquet(con, f"SELECT * FROM {rows}", staged, "ingest: table")
            return staged
        except (duckdb.Error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            problem = error
        finally:
            con.close()
    raise UserError(f"{part} cannot be read: {' '.join(str(problem).split())[:300]}") from problem
