"""Images with captions in any layout that :mod:`filip.sets` reads: the same images and texts as a training gets.

    layouts:
      captions: {path: flickr30k, split: test, annotations: dataset_flickr30k.json, images: images}

Options, all of which may be left out:

    annotations       the list below ``path``; left out: ``path`` is the set
    images            folder below ``path`` that the list's names are relative to; left out: the list's folder
    layout            its name in filip/sets/layouts.py; left out: found out
    image, caption    columns; left out: the usual names are looked for (filip/sets/columns.py)
    keep              {column: value}: only rows of a table that have it, e.g. a split
    prefix, suffix    texts before and behind a name in a table's image column, e.g. ".jpg"
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from filip.common.errors import UserError
from filip.common.progress import say
from filip.eval.benchmark import BenchmarkCard
from filip.eval.datasets import EvalSet, Sample
from filip.images.rgb import read_rgb
from filip.sets.image_set import open_images
from filip.sets.layout import FOR_EVALUATION, Reading

KEYS = ("annotations", "images", "layout", "image", "caption", "keep", "prefix", "suffix")


def open_set(card: BenchmarkCard, root: str | Path) -> EvalSet:
    options = card.layout.options
    if unknown := sorted(set(options) - set(KEYS)):
        raise UserError(
            f"card {card.name}: layouts.{card.loader} has no option {unknown[0]!r}; it has {', '.join(KEYS)}"
        )
    return Captions(Path(root) / card.path, card.split, **options)


class Captions(EvalSet):
    """A set of images with captions.

    place: folder or file of the set; split: "" = test, else validation, else the first; options: see the module.

    A line on stderr counts the images, and names the others and the reasons.
    """

    def __init__(self, place: Path, split: str = "", annotations: str = "", images: str = "", **options: Any):
        listed = place / annotations if annotations else place
        if annotations and not listed.is_file():
            raise UserError(f"no annotations at {listed}; see the card's homepage")
        reading = Reading(
            listed,
            layout=options.get("layout", "auto"),
            image_root=str(place / images) if images else None,
            image_column=options.get("image"),
            image_name=f"{options.get('prefix', '')}{{}}{options.get('suffix', '')}",
            only={column: str(value) for column, value in options.get("keep", {}).items()},
            caption_column=options.get("caption", "caption"),
            # COCO's 113,000 images for training are train and restval
            split="train+restval" if split == "train" and annotations else split or None,
            prefer=FOR_EVALUATION,
        )
        self.images = open_images(reading)
        if not len(self.images):
            first = next(iter(self.images.account.examples.get("missing_file", [])), None)
            if first:
                raise UserError(f"{listed} names an image that cannot be read: {first}")
            raise UserError(f"no image of {listed} can be used: {self.images.account.line() or 'there is none'}")
        say(self.images.summary())
        self.classes = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        item = self.images.items[index]
        image = read_rgb(io.BytesIO(self.images.read(item)))
        return Sample(item.name, image, captions=list(item.captions))

    def files(self) -> list[str]:
        return [item.file for item in self.images.items]

    def name_of(self, index: int) -> str:
        return str(self.images.items[index].name)
