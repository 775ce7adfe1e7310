"""The description of a benchmark, as its card gives it.

:mod:`filip.eval.cards` reads cards, :mod:`filip.eval.formats` their data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from filip.cli.option import MISSING, option

KINDS = {
    "classification": ("top1", "top5", "mean_per_class"),
    "retrieval": ("recall",),
    "selection": ("accuracy",),  # captions of which the first is true
    "segmentation": ("miou",),  # images with classes of pixels
    "pointing": ("accuracy",),  # a caption that names things with known places
}
HAVE_CAPTIONS = ("retrieval", "selection", "pointing")


@dataclass(frozen=True)
class BenchmarkLayout:
    """One layout of a benchmark on disk."""

    loader: str = MISSING
    path: str = ""  # folder below the evaluation root
    split: str = MISSING
    size: int | None = option(None, "images in the split; None = not stated", at_least=1)
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of the loader


@dataclass(frozen=True)
class BenchmarkCard:
    """A benchmark as described by ``eval/<name>.yaml``, with one of its layouts chosen."""

    name: str = MISSING
    title: str = MISSING
    kind: str = option(MISSING, "classes, captions or places of its images", choices=KINDS)
    metric: str = option(MISSING, "number that the tables show; see KINDS")
    layout: BenchmarkLayout = option(MISSING, "its images on disk")
    classes: dict[str, str] | None = None  # None: taken from the data set, raw name = prompt name
    classes_of: str = ""  # a card with the same classes in the same order, whose names the data set may have
    prompts: str | None = None
    published: str | None = None
    not_comparable: str = ""  # why published numbers cannot be compared with ours, "" = they can
    published_size: int | None = option(
        None, "images behind the published numbers, where a copy on disk has others", at_least=1
    )
    fine_tuned_on: list[str] = field(default_factory=list)  # cards in data/ that hold its training split
    homepage: str = ""
    license: str = ""
    origin: str = ""  # where class names and numbers come from
    note: str = ""

    @property
    def loader(self) -> str:
        return self.layout.loader

    @property
    def path(self) -> str:
        return self.layout.path

    @property
    def split(self) -> str:
        return self.layout.split

    @property
    def size(self) -> int | None:
        return self.layout.size
