"""The URL list of the demo corpus: single drawings, scenes and planted rows, mixed by hash."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from filip.common.files import replacing
from filip_demo.catalogue import Drawing, caption_of, hash_of
from filip_demo.faulty_rows import PlantedRow
from filip_demo.scene_sets import SceneFacts

BETWEEN = ";"  # the artists, concepts and labels of a scene


@dataclass(frozen=True)
class ListRow:
    path: str  # path of the image, below the server's root
    caption: str
    group: int
    artist: str
    concept: str
    label: str
    planted: str = ""


def training_table(
    training: Sequence[Drawing], scenes: Sequence[SceneFacts], planted: Sequence[PlantedRow], server: str
) -> pa.Table:
    """Return the URL list, in the order of a hash, which mixes all kinds of rows and all artists evenly."""
    rows = []
    for drawing in training:
        emoji, path = drawing.emoji, f"images/{drawing.artist}/{drawing.slug}.png"
        caption = caption_of(drawing)
        rows.append(ListRow(path, caption, emoji.content_id, drawing.artist, emoji.concept, emoji.label))
    for scene in scenes:
        names = (BETWEEN.join(each) for each in (scene.artists, scene.concepts, scene.labels))
        rows.append(ListRow(scene.path, scene.caption, scene.content_id, *names))
    for p in planted:
        emoji, artist = p.emoji, p.drawing.artist
        rows.append(ListRow(p.path, p.caption, emoji.content_id, artist, emoji.concept, emoji.label, p.kind))
    rows.sort(key=lambda row: hash_of(row.path))
    columns = {"url": pa.array([f"{server}/{row.path}" for row in rows], pa.string())}
    columns["caption"] = pa.array([row.caption for row in rows], pa.string())
    columns["group"] = pa.array([row.group for row in rows], pa.int64())
    for name in ("artist", "concept", "label", "planted"):
        columns[name] = pa.array([getattr(row, name) for row in rows], pa.string())
    return pa.table(columns)


def write_table(table: pa.Table, path: Path) -> None:
    with replacing(path) as part:
        pq.write_table(table, part)


def write_captions(table: pa.Table, path: Path) -> None:
    """Write the images of the URL list as a person's own: a CSV of their paths and captions."""
    with replacing(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "caption", "group"])
        for row in table.select(["url", "caption", "group"]).to_pylist():
            rows.writerow([urlsplit(row["url"]).path.lstrip("/"), row["caption"], row["group"]])
