"""Image features kept on disk, so that no image is encoded twice by the same model, and several jobs can share a set.

    filip eval model=M data=[imagenet] root=DIR features=CACHE                # encodes, and keeps the features
    filip eval model=M data=[imagenet] root=DIR features=CACHE prompts='…'    # encodes no image
    filip eval model=M data=[imagenet] root=DIR features=CACHE shard=3/8      # encodes its eighth only, of 0/8 to 7/8

A set is kept under a hash of everything that its features depend on: the weights, the resolution, the precision, the
card's layout, and size and time of the data's files. Change one of them, and it is another set. Each batch is a
separate file, so a run that was interrupted, or several jobs with ``shard=``, leave a beginning for the next run, which
gives the same numbers to the bit, since the batches are the same.

Of a batch there are two kinds: "image", for similarities, and "probe", for a linear probe. On
the images of a classification card one pass of the encoder makes and keeps both, where the model can.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filip.eval.cards import BenchmarkCard
from filip.eval.datasets import Batch
from filip.eval.encoders import Encoder
from filip.eval.half_precision import name_of
from filip.files import digest, readable, replacing
from filip.progress import say
from filip.runs.saved_files import weights_of

FORM = 2  # version of the files' format; a set of another version is a different set
IN_A_BATCH = ("labels", "captions", "keys", "clusters", "undecodable", "truths", "categories")


class ShardEncodedError(Exception):
    """The end of a job with ``shard=``, not a mistake: it has encoded its part, which gives no numbers."""


@dataclass(frozen=True)
class FeatureStore:
    """The features of one model in a folder.

    model: hash of the model, see :func:`model_key`. limit: bytes, above which the sets that
    were used longest ago are removed. shard: (number from 0, of how many) if only that part is to be encoded.
    """

    folder: Path
    model: dict[str, Any]
    limit: int
    shard: tuple[int, int] | None = None

    def of_set(self, card: BenchmarkCard, root: str | Path, batch_size: int) -> KeptSet:
        """Return the stored features of a data set."""
        layout = asdict(card.layout)
        about = {"form": FORM, "model": self.model, "layout": layout, "batch_size": batch_size}
        name = digest({**about, "root": str(Path(root).resolve()), "data": files_of(Path(root), card)})
        return KeptSet(self.folder / f"{card.name}-{name[:24]}")

    def own(self, count: int) -> Iterable[int]:
        """Return the numbers of the batches of this job's part, or of all ``count`` if the job has no part."""
        return range(count) if self.shard is None else range(self.shard[0], count, self.shard[1])

    def trim(self, stored: KeptSet) -> None:
        """Remove the sets that were used longest ago until the folder is within its limit; ``kept`` stays."""
        sets = sorted((p for p in self.folder.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
        sizes = {place: sum(file.stat().st_size for file in place.glob("*.pt")) for place in sets}
        for place in sets:
            if sum(sizes.values()) <= self.limit:
                return
            if place != stored.folder:
                say(f"{place}: removed {readable(sizes.pop(place))}, features= may hold {readable(self.limit)}")
                shutil.rmtree(place, ignore_errors=True)


@dataclass(frozen=True)
class KeptSet:
    """The batches that are kept of one set, by number and kind ("image" or "probe")."""

    folder: Path

    def has(self, number: int, kind: str) -> bool:
        return self._file(number, kind).is_file()

    def _file(self, number: int, kind: str) -> Path:
        return self.folder / f"{number}.{kind}.pt"

    def put(self, number: int, kind: str, features: Tensor, batch: Batch) -> None:
        """Keep the features of a batch, and its images' data except the pixels."""
        content = {"features": features.cpu(), **{name: getattr(batch, name) for name in IN_A_BATCH}}
        with replacing(self._file(number, kind), shared=True) as part:
            torch.save(content, part)

    def get(self, number: int, kind: str) -> tuple[Tensor, Batch] | None:
        """Return (features on the CPU, batch without pixels); None if it cannot be read."""
        try:
            content = torch.load(self._file(number, kind), weights_only=True, map_location="cpu")
        except Exception:  # a file that is gone or half there makes torch's reader raise this and that
            return None
        features = content.pop("features")
        return features, Batch(torch.zeros(len(features), 3, 0, 0), **content)

    def used(self) -> None:
        """Note that the set is in use now, for :meth:`FeatureStore.trim`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        os.utime(self.folder)


def features_of_batches(
    kept: KeptSet | None,
    numbers: Iterable[int],
    kind: str,
    encode: Callable[[Tensor], dict[str, Tensor]],
    read: Callable[[list[int]], Iterator[Batch]],
    device: str,
) -> Iterator[tuple[Tensor, Batch]]:
    """Yield (features of a kind on ``device``, batch) of the batches ``numbers``, in that order, kept ones as they
    were kept.

    read: goes through the images of the batches that it is given, in order. encode: pixels -> features by kind, that
    kind among them; all of them are kept.
    """
    needed = list(numbers)
    if kept is None:
        for batch in read(needed):
            yield encode(batch.pixels)[kind] if batch.keys else batch.pixels, batch
        return
    kept.used()
    there = {number for number in needed if kept.has(number, kind)}
    fresh = read([number for number in needed if number not in there])
    for number in needed:
        stored = kept.get(number, kind) if number in there else None
        if stored is None:
            batch = next(read([number])) if number in there else next(fresh)
            made = encode(batch.pixels) if batch.keys else {kind: batch.pixels[:, 0, 0]}
            for each, features in made.items():
                kept.put(number, each, features, batch)
            stored = made[kind], batch
        yield stored[0].to(device), stored[1]


def model_key(model: str, encoder: Encoder) -> dict[str, Any]:
    """Return a hash of a model, for its features. model: as on the command line; its files are read once for this."""
    return {
        "weights": weights_of(model),
        "image_size": encoder.image_size,
        "precision": name_of(encoder.dtype),
        "token_wise": encoder.token_wise,
        "details": encoder.details,
    }


def files_of(root: Path, card: BenchmarkCard) -> Any:
    """Return names, sizes and times of the files of a card's data; nothing for layouts that name no separate folder."""
    place = root / card.path
    if not card.path or not place.is_dir():
        return _stamp(place) if card.path else None
    files = sorted(Path(folder, name) for folder, _, names in os.walk(place) for name in names)
    return digest([[str(file.relative_to(place)), _stamp(file)] for file in files])


def _stamp(file: Path) -> list[int] | None:
    with suppress(OSError):
        about = file.stat()
        return [about.st_size, about.st_mtime_ns]
    return None
