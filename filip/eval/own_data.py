"""Data of one's own: the protocols that fit a folder or a table without a card, and what so many pictures can show."""

from __future__ import annotations

from pathlib import Path

from filip.common.errors import UserError
from filip.eval.benchmark import BenchmarkCard, BenchmarkLayout
from filip.eval.cards import load_card
from filip.eval.formats.imagefolder import images_below
from filip.sets.columns import CAPTION_COLUMNS, LABEL_COLUMNS, usual_column
from filip.sets.layout import FOR_EVALUATION, NotUnderstoodError, Reading
from filip.sets.layouts import LAYOUTS, recognise

SHARE = 0.1  # of the pictures is held out,
FEWEST, MOST = 50, 5_000  # within these bounds
FEW = 1_000  # pairs, by convention: nothing here was measured


def cards_of(data: str) -> list[BenchmarkCard]:
    """Return the benchmarks in ``data``: a card by name or path, or a folder or file with your data.

    A card may name its layout: ``cifar10@LAYOUT``.

    Your data may be: a folder of classes (``class/image.jpg``), CLIP_benchmark's webdataset, a table with a column of
    labels, or images with captions in any layout that :mod:`filip.sets` reads. With labels and captions it is two
    benchmarks. Raises UserError with the places that were searched.
    """
    place = Path(data)
    if place.suffix in (".yaml", ".yml") or not place.exists():
        name, at, layout = data.partition("@")
        return [load_card(name, layout if at else None)]
    if splits := sorted(file.parent.name for file in place.glob("*/nshards.txt")):
        kind = place / "dataset_type.txt"
        if not kind.is_file() or kind.read_text(encoding="utf-8").strip() != "retrieval":
            return [_card(place, "webdataset", "classification", "test" if "test" in splits else splits[0])]
    found = _with_captions_or_labels(place)
    if found:
        return found
    inside = next((place / name for name in ("test", "val", "validation") if (place / name).is_dir()), place)
    if place.is_dir() and any(images_below(folder) for folder in inside.iterdir() if folder.is_dir()):
        return [_card(place, "imagefolder", "classification", inside.name if inside != place else "all")]
    layouts = "; ".join(layout.about for layout in LAYOUTS.values())
    raise UserError(
        f"{place} holds nothing to evaluate on: give a folder of classes (class/image.jpg), a table with images and "
        f"labels, a card, or images with captions: {layouts}"
    )


def _with_captions_or_labels(place: Path) -> list[BenchmarkCard]:
    reading = Reading(place, prefer=FOR_EVALUATION)
    try:
        layout, parts, reading = recognise(reading)
        columns = LAYOUTS[layout].columns(parts[0], reading)
    except NotUnderstoodError:
        if place.is_file():
            raise
        return []
    if layout not in ("table", "parquet"):
        return [_card(place, "captions", "retrieval", "")]
    kinds = {"retrieval": CAPTION_COLUMNS, "classification": LABEL_COLUMNS}
    if layout == "parquet" and len(parts) > 1:
        del kinds["classification"]  # it is read from one table
    fitting = [kind for kind, names in kinds.items() if usual_column(columns, names)]
    if not fitting and place.is_dir():
        try:
            next(LAYOUTS[layout].find(parts[0], reading), None)
        except UserError:
            return []  # a table of something else, in a folder of classes
        fitting = ["retrieval"]
    if not fitting:
        raise UserError(
            f"{parts[0]} has no column of captions ({', '.join(CAPTION_COLUMNS)}) and none of labels "
            f"({', '.join(LABEL_COLUMNS)}); it has {', '.join(columns)}"
        )
    cards = []
    for kind in fitting:
        named = kind if len(fitting) > 1 else ""
        if kind == "retrieval":
            cards.append(_card(place, "captions", kind, "", named))
        else:
            cards.append(_card(parts[0], "records", kind, "", named, of=place))
    return cards


def _card(place: Path, loader: str, kind: str, split: str, named: str = "", of: Path | None = None) -> BenchmarkCard:
    """Return a card for the data at ``place``, under the name of ``of``."""
    called = of or place
    name = called.stem if called.is_file() else called.resolve().name
    name = f"{name}_{named}" if named else name
    metric = "top1" if kind == "classification" else "recall"
    return BenchmarkCard(name, name, kind, metric, BenchmarkLayout(loader, str(place.resolve()), split, None, {}))


def held_out_of(pictures: int) -> int:
    """Return how many of the pictures are held out: a half of fewer than 2 * FEWEST, whose halves test each other."""
    return min(MOST, pictures // 2, max(FEWEST, round(SHARE * pictures)))


def few(trained: int) -> str:
    """Return what fewer than FEW pictures are good for; "" for more."""
    return f"fewer than {FEW:,} are few, enough to try the commands" if trained < FEW else ""


def size_of_set(trained: int, tested: int) -> str:
    """Return how many pictures a model is trained and tested on, and what these numbers can and cannot show."""
    margin = 98 / max(tested, 1) ** 0.5  # half of a 95 % interval for a share of a half, by the normal distribution
    enough = f" ({few(trained)})" if few(trained) else ""
    return (
        f"{trained:,} pictures to train on{enough}, and {tested:,} held out, by which a share of them is known to "
        f"within {margin:.0f} points"
    )
