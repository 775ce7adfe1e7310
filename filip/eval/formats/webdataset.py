"""CLIP_benchmark's webdataset folders: tars of images, each with a class number or captions."""

from __future__ import annotations

import io
import json
import os
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from filip.common.errors import UserError
from filip.common.tar_index import Member, scan_tar
from filip.eval.benchmark import BenchmarkCard
from filip.eval.datasets import EvalSet, Sample, Thing
from filip.images.rgb import read_rgb
from filip.sets.columns import TEXT_SUFFIXES, captions_in, lines_of
from filip.sets.layout import Reading
from filip.sets.same_name import samples_of

Files = dict[str, tuple[Path, Member]]  # by extension: the tar, and the place in it
READING = Reading(Path())  # the usual names of columns
IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg")  # in the order in which CLIP_benchmark looks for them


def open_set(card: BenchmarkCard, root: str | Path) -> EvalSet:
    options = card.layout.options
    given = {key: options[key] for key in ("cluster", "choices", "maps") if key in options}
    return WebdatasetFolder(Path(root) / card.path, card.split, **given)


class WebdatasetFolder(EvalSet):
    """A set in CLIP_benchmark's layout: ``<folder>/<split>/{nshards.txt,0.tar,…}`` with ``<folder>/classnames.txt``.

    A sample is an image (webp, png, jpg) and ``.cls`` (label) or ``.txt`` (captions, one a line), and
    optionally ``.mask.png``, where its object is, and ``.json``: with ``.things.png`` it has the places of its
    things, and its field ``cluster`` (the layout's option of that name) marks samples that show the same thing. The
    tars are indexed once by their headers; samples are then read in any order.

    choices: extension of the captions to select from (one a line, the true one first), instead of ``.txt``; samples
    that have none are left out.

    maps: samples are maps of classes, without captions: each pixel has the class that its thing's label names. Classes
    are the distinct labels of the set's things, in alphabetical order; the background is unlabelled.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "test",
        cluster: str | None = None,
        choices: str | None = None,
        maps: bool = False,
    ):
        self.folder, self.cluster = Path(folder), cluster
        self.choices, self.maps = choices, maps
        self.shards = self._find_shards(split)
        kind = self._text("dataset_type.txt")
        self.retrieval = kind is not None and kind.strip().lower() == "retrieval"
        names = None if self.retrieval else self._text("classnames.txt")
        if names is None and not self.retrieval:
            raise UserError(f"{self.folder} has no classnames.txt (one class name a line, first = label 0)")
        self.classes = None if names is None else [line.strip() for line in names.splitlines()]
        stated = ((shard, shard.stat()) for shard in self.shards)
        self.samples = [s for shard, state in stated for s in _index_of(shard, state.st_size, state.st_mtime_ns)]
        if choices:
            self.samples = [sample for sample in self.samples if choices in sample[1]]
        self._open: dict[Path, Any] = {}
        if maps:
            self.classes = sorted({label for index in range(len(self)) for label in self._labels(index)})

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        key, members = self.samples[index]
        extension = next((e for e in IMAGE_EXTENSIONS if e in members), None)
        if extension is None:
            raise UserError(f"sample {key} in {self.folder} has no image ({', '.join(IMAGE_EXTENSIONS)})")
        sample = Sample(key, read_rgb(io.BytesIO(self._read(members[extension]))))
        if self.maps:
            assert self.classes is not None
            # value 0 is the background, n the n-th thing
            classes = np.array([-1, *map(self.classes.index, self._labels(index))])
            sample.segments = classes[np.asarray(_grey(self._read(members["things.png"])))]
            return sample
        if self.retrieval:
            # a training reads the same captions of these; ``KEY.order.txt`` holds captions to select from
            files = {kind: partial(self._read, members[kind]) for kind in TEXT_SUFFIXES if kind in members}
            captions = captions_in(files, READING).captions
            if self.choices is not None:
                captions = lines_of(self._read(members[self.choices])) or []
            if not captions:
                raise UserError(f"sample {key} in {self.folder} has no caption in its .{self.choices or 'txt'}")
            sample.captions = captions
        elif "cls" not in members:
            raise UserError(f"sample {key} in {self.folder} has no .cls")
        else:
            sample.label = int(self._read(members["cls"]))
            if not 0 <= sample.label < len(self.classes or []):
                raise UserError(
                    f"sample {key} in {self.folder} has label {sample.label}, but classnames.txt has "
                    f"{len(self.classes or [])} names"
                )
        if self.cluster is not None:
            about = json.loads(self._read(members["json"])) if "json" in members else {}
            if self.cluster not in about:
                raise UserError(
                    f"sample {key} in {self.folder} has no {self.cluster!r} in a .json, which the card names"
                )
            sample.cluster = str(about[self.cluster])
        if "mask.png" in members:
            sample.mask = _grey(self._read(members["mask.png"]))
        if "things.png" in members and "json" in members:
            # the pixels of the n-th of the JSON's ``things`` have the value n
            shown, file = _grey(self._read(members["things.png"])), f"{key}.things.png of {self.folder}"
            described = json.loads(self._read(members["json"]))["things"]
            sample.things = [Thing(thing["label"], shown, number, file) for number, thing in enumerate(described, 1)]
        return sample

    def name_of(self, index: int) -> str:
        return f"number {index} ({self.samples[index][0]})"

    def _labels(self, index: int) -> list[str]:
        """Return the labels of a sample's things, in order. Raises UserError if it has no places of them."""
        key, members = self.samples[index]
        if not {"json", "things.png"} <= set(members):
            raise UserError(f"sample {key} in {self.folder} has no .things.png and .json with its things")
        return [str(thing["label"]) for thing in json.loads(self._read(members["json"]))["things"]]

    def _find_shards(self, split: str) -> list[Path]:
        count = self.folder / split / "nshards.txt"
        self.others = splits = sorted({p.parent.name for p in self.folder.glob("*/nshards.txt")} - {split})
        if not count.is_file():
            raise UserError(
                f"no data set at {self.folder} (looked for {count}); "
                + (f"its splits are {', '.join(splits)}" if splits else "see the card's homepage, or set root=")
            )
        shards = [self.folder / split / f"{i}.tar" for i in range(int(count.read_text()))]
        if missing := [str(s) for s in shards if not s.is_file()]:
            raise UserError(f"{count} says {len(shards)} shards, but {missing[0]} is missing")
        return shards

    def _text(self, name: str) -> str | None:
        file = self.folder / name
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def _read(self, place: tuple[Path, Member]) -> bytes:
        shard, member = place
        if shard not in self._open:
            self._open[shard] = open(shard, "rb")  # noqa: SIM115 (kept open)
        # pread, because forked workers share the offset of a file opened before the fork
        return os.pread(self._open[shard].fileno(), member.size, member.offset)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # workers open the tars themselves


def _grey(content: bytes) -> Image.Image:
    """Open an image in mode L, which is decoded when its pixels are asked for if it is stored so."""
    image = Image.open(io.BytesIO(content))
    return image if image.mode == "L" else image.convert("L")


@lru_cache(maxsize=64)  # each set is opened to be checked, and again to be read
def _index_of(shard: Path, size: int, changed: int) -> list[tuple[str, Files]]:
    """Return (key, {extension: its place}) for each sample of a tar, in the tar's order."""
    members, defect = scan_tar(shard)
    if defect:
        raise UserError(f"{shard} is not a readable tar ({defect}); fetch it again")
    return [
        (sample.key, {suffix: (shard, member) for suffix, member in sample.files})
        for sample in samples_of(members)
        if sample.key
    ]
