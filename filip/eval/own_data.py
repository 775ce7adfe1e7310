"""Data without a card: what a folder or a table holds decides what can be measured on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filip.errors import UserError
from filip.eval.cards import BenchmarkCard, Layout, load_card
from filip.eval.formats.imagefolder import images_below
from filip.eval.records import CAPTION_COLUMNS, LABEL_COLUMNS, SUFFIXES, is_hugging_face, read_records

TABLES = ("metadata", "captions", "annotations", "labels")  # what a table beside the images may be called


def cards_of(data: str, loader: str | None = None) -> list[BenchmarkCard]:
    """The benchmarks in ``data``: a card by name or path, or a folder or table of your own.

    Your own may be: a folder of classes (``class/image.jpg``), CLIP_benchmark's webdataset, a data set that
    Hugging Face's ``datasets`` saved, a table (CSV, TSV, JSON, JSON lines, Parquet) with a column of images and one of
    captions or labels, or a folder with such a table in it. With both columns it is two benchmarks.
    Raises UserError that says what was looked for.
    """
    place = Path(data)
    if place.suffix in (".yaml", ".yml") or not place.exists():
        return [load_card(data, loader)]
    if place.is_file():
        return _of_table(place)
    if is_hugging_face(place):
        return _of_table(place)
    if splits := sorted(file.parent.name for file in place.glob("*/nshards.txt")):
        kind = place / "dataset_type.txt"
        retrieval = kind.is_file() and kind.read_text(encoding="utf-8").strip() == "retrieval"
        split = "test" if "test" in splits else splits[0]
        return [_card(place, "webdataset", "retrieval" if retrieval else "classification", split)]
    tables = [
        place / f"{name}{suffix}"
        for name in TABLES
        for suffix in SUFFIXES
        if (place / f"{name}{suffix}").is_file()
    ]
    if tables:
        return _of_table(tables[0])
    inside = next((place / name for name in ("test", "val", "validation") if (place / name).is_dir()), place)
    if any(images_below(folder) for folder in inside.iterdir() if folder.is_dir()):
        return [_card(place, "imagefolder", "classification", inside.name if inside != place else "all")]
    if any(place.glob("*.txt")) and images_below(place):
        return [_card(place, "text_pairs", "retrieval", "all")]
    raise UserError(
        f"{place} holds nothing to evaluate on: give a folder of classes (class/image.jpg), a table {TABLES[0]}.csv, "
        ".jsonl or .parquet with images and captions or labels, image.jpg with image.txt, a webdataset, a data set of "
        "Hugging Face's datasets, or a card"
    )


def retrieval_card(data: str) -> BenchmarkCard:
    """The pictures with captions that ``data`` names (see :func:`cards_of`). UserError if it has no captions."""
    for card in cards_of(data):
        if card.kind == "retrieval":
            return card
    raise UserError(f"data={data} has no captions")


def _of_table(place: Path) -> list[BenchmarkCard]:
    rows = read_records(place)
    kinds = {"retrieval": CAPTION_COLUMNS, "classification": LABEL_COLUMNS}
    cards = [
        _card(place, "records", kind, "test", named=kind)
        for kind, columns in kinds.items()
        if any(name in rows.columns for name in columns)
    ]
    if not cards:
        raise UserError(
            f"{place} has no column of captions ({', '.join(CAPTION_COLUMNS)}) and none of labels "
            f"({', '.join(LABEL_COLUMNS)}); it has {', '.join(rows.columns)}"
        )
    return cards if len(cards) > 1 else [_card(place, "records", cards[0].kind, "test")]


def _card(place: Path, loader: str, kind: str, split: str, named: str = "", **options: Any) -> BenchmarkCard:
    name = place.stem if place.is_file() else place.resolve().name
    name = f"{name}_{named}" if named else name
    metric = "top1" if kind == "classification" else "recall"
    return BenchmarkCard(name, name, kind, metric, Layout(loader, str(place.resolve()), split, None, options))
