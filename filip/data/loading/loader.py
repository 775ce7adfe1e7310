"""The stream of image-text pairs that training reads: batches as a function of (seed, epoch, batch number).

The content of global batch g depends on nothing else, so the number of workers, a restart and even the number
of ranks (at the same global batch size) change nothing, and the state to save is a batch number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import random
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from filip.data.loading.epoch_order import Slots, lane_length, lane_slots
from filip.data.loading.images import UNDECODABLE
from filip.data.loading.pair_index import ShardCaptions, Source, SourceIndex, index_source, sidecar_path
from filip.data.loading.transforms import EvalTransform, TrainTransform, normalize
from filip.errors import UserError
from filip.tokenizer import tokenize

log = logging.getLogger(__name__)
_NEARBY, _ATTEMPTS = 5, 50  # images tried for one slot: within its shard, and before giving up

Batch = dict[str, Any]


class PairStream(Dataset[Batch]):
    """Random access to this rank's batches: ``stream[epoch, batch]``. Runs in the workers."""

    def __init__(
        self,
        indices: Sequence[SourceIndex],
        *,
        batch_size: int,
        transform: TrainTransform | EvalTransform,
        back_translation: bool,
        seed: int,
        rank: int,
        world_size: int,
        context_length: int,
        shuffle_window_shards: int,
        reader_groups: int,
    ) -> None:
        self.indices = list(indices)
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.transform, self.back_translation = transform, back_translation
        self.seed, self.context_length = seed, context_length
        self.shuffle_window_shards, self.reader_groups = shuffle_window_shards, reader_groups
        self._counts = [index.counts for index in self.indices]
        self._weights = [index.source.weight for index in self.indices]
        self._epoch: int | None = None
        self._lanes: dict[int, Slots] = {}
        self._open: OrderedDict[tuple[int, int], tuple[int, ShardCaptions]] = OrderedDict()

    def _lane(self, epoch: int, lane: int) -> Slots:
        """The order of one lane; kept until another epoch is asked for."""
        if self._epoch != epoch:
            self._epoch, self._lanes = epoch, {}
        if lane not in self._lanes:
            self._lanes[lane] = lane_slots(
                self._counts,
                self._weights,
                seed=self.seed,
                epoch=epoch,
                shuffle_window_shards=self.shuffle_window_shards,
                lane=lane,
                reader_groups=self.reader_groups,
            )
        return self._lanes[lane]

    def lane_lengths(self) -> list[int]:
        """Pairs per lane and epoch."""
        return [
            lane_length(self._counts, self._weights, lane, self.reader_groups)
            for lane in range(self.reader_groups)
        ]

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.world_size

    def slots(self, epoch: int, batch: int) -> list[tuple[int, int, int]]:
        """(source, sample, visit) of each pair of this rank's part of global batch ``batch``."""
        share = self.global_batch // self.reader_groups
        result = []
        for place in range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size):
            lane, position = self._lane(epoch, place // share), batch * share + place % share
            result.append((int(lane.source[position]), int(lane.sample[position]), int(lane.visit[position])))
        return result

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        epoch, batch = item
        problems: Counter[str] = Counter()
        size = self.transform.image_size
        pixels = torch.empty(self.batch_size, 3, size, size)
        texts, group, keys = [], [], []
        for i, slot in enumerate(self.slots(epoch, batch)):
            image, text, group_id, key = self._pair(epoch, *slot, problems)
            normalize(image, out=pixels[i])
            texts.append(text)
            group.append(group_id)
            keys.append(key)
        ids, lengths = tokenize(texts, self.context_length)
        return {
            "pixels": pixels,
            "ids": ids,
            "lengths": lengths,
            "group": torch.tensor(group, dtype=torch.int64),
            "key": keys,
            "problems": dict(problems),
        }

    def _pair(
        self, epoch: int, source: int, sample: int, visit: int, problems: Counter[str]
    ) -> tuple[np.ndarray, str, int, str]:
        """One pair; an image that cannot be decoded is replaced by another, and both facts are counted.

        Replacing keeps every batch full on every rank without a word between them; the substitute is a
        function of the slot, so it is the same for any number of workers and after a restart.
        """
        index = self.indices[source]
        substitutes = random.Random(_hash(self.seed, epoch, visit, source, sample, "substitute"))
        for attempt in range(_ATTEMPTS):
            shard = index.shard_of(sample)
            file, captions = self._shard(source, shard)
            row = int(index.row[sample])
            key = captions.key(row)
            rng = random.Random(_hash(self.seed, epoch, visit, source, shard, key))
            draw = rng.random()  # drawn in any case: back-translation must not change the image
            try:
                data = os.pread(file, int(index.size[sample]), int(index.offset[sample]))
                pixels = self.transform.pixels(data, rng)
                text = captions.text(row, draw if self.back_translation else 0.0)
                problems["substituted"] += attempt > 0
                return pixels, text, int(captions.group[row]), key
            except UNDECODABLE as error:
                problems["undecodable"] += 1
                log.debug("undecodable image %s in %s: %s", key, index.tars[shard], error)
            if attempt < _NEARBY:  # the shard is open already
                sample = int(index.starts[shard]) + substitutes.randrange(int(index.counts[shard]))
            else:
                sample = substitutes.randrange(len(index))
        raise UserError(
            f"{_ATTEMPTS} images of {index.source.shards} in a row cannot be decoded, the last in "
            f"{index.tars[shard].name}; delete the broken tars with their stats files and run the download stage "
            "again"
        )

    def _shard(self, source: int, shard: int) -> tuple[int, ShardCaptions]:
        place = (source, shard)
        if place in self._open:
            self._open.move_to_end(place)
            return self._open[place]
        index = self.indices[source]
        tar = index.tars[shard]
        if index.source.captions is None:
            captions = ShardCaptions.from_tar(tar)
        else:
            captions = ShardCaptions.from_sidecar(sidecar_path(index.source, tar))
        opened = (os.open(tar, os.O_RDONLY), captions)
        self._open[place] = opened
        if len(self._open) > (self.shuffle_window_shards + 1) * len(self.indices) * self.reader_groups:
            os.close(self._open.popitem(last=False)[1][0])
        return opened


@dataclass
class _Position:
    epoch: int
    batch: int  # batches given


class PairLoader:
    """Iterate over the rest of an epoch's batches; see :func:`build_loader`."""

    def __init__(
        self, stream: PairStream, *, epoch: int, workers: int, prefetch: int, pin_memory: bool
    ) -> None:
        self.stream, self._at = stream, _Position(epoch, 0)
        self.counters: Counter[str] = Counter()
        for index in stream.indices:
            self.counters.update(index.problems)
        if self.counters:
            log.warning("not all of the data is usable: %s", dict(self.counters))
        lengths = stream.lane_lengths()
        self.pairs = sum(lengths)
        self._batches = min(lengths) // (stream.global_batch // stream.reader_groups)
        if not self._batches:
            raise UserError(
                f"{self.pairs} pairs do not fill one global batch of {stream.global_batch} "
                f"({stream.batch_size} x {stream.world_size} ranks); lower the batch size"
            )
        self._loader = DataLoader(
            stream,
            batch_size=None,
            sampler=_Rest(self._at, self._batches),
            num_workers=workers,
            prefetch_factor=prefetch if workers else None,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else each epoch's start would draw from torch's global one
        )

    @property
    def epoch(self) -> int:
        return self._at.epoch

    @property
    def batch(self) -> int:
        """How many batches of the epoch were given."""
        return self._at.batch

    def __len__(self) -> int:
        """Batches per epoch, the same on every rank; pairs that do not fill a global batch are left out."""
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        """The batches from ``self.batch`` to the end of the epoch; then the loader is at the next epoch."""
        try:
            for batch in self._loader:
                self.counters.update({name: n for name, n in batch.pop("problems").items() if n})
                self._at.batch += 1
                yield batch
        except UserError as error:  # torch puts a worker's traceback before its sentence
            raise UserError(str(error).rsplit("UserError: ", 1)[-1].strip()) from None
        self._at.epoch, self._at.batch = self._at.epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of ``epoch``; nothing happens if the loader is already in it."""
        if epoch != self.epoch:
            self._at.epoch, self._at.batch = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the last batch it gave: plain values, per rank only the counters."""
        return {
            "epoch": self.epoch,
            "pairs_done": self.batch * self.stream.global_batch,
            "fingerprint": self.fingerprint(),
            "counters": dict(self.counters),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the very next batch. Workers and ranks may differ from those that wrote the state.

        UserError if the data, the seed or the weights are others, or the global batch size does not divide
        what was done.
        """
        if state["fingerprint"] != self.fingerprint():
            raise UserError(
                "the checkpoint's loader state belongs to other data (shards, side-cars, weights or seed); "
                "resume with the same data.sources and seed, or start afresh with resume=never"
            )
        done, remainder = divmod(int(state["pairs_done"]), self.stream.global_batch)
        if remainder:
            raise UserError(
                f"the checkpoint stands after {state['pairs_done']} pairs of the epoch, no multiple of "
                f"the global batch {self.stream.global_batch}; resume with the same global batch"
            )
        self._at.epoch, self._at.batch = int(state["epoch"]), done
        self.counters = Counter(state["counters"])

    def fingerprint(self) -> str:
        """Identity of what the order of pairs depends on."""
        what = {
            "seed": self.stream.seed,
            "shuffle_window_shards": self.stream.shuffle_window_shards,
            "reader_groups": self.stream.reader_groups,
            "sources": [
                [[t.name for t in index.tars], index.counts.tolist(), index.source.weight]
                for index in self.stream.indices
            ],
        }
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


class _Rest(Sampler[tuple[int, int]]):
    """The batch numbers still to come. Holds the position, not the loader: in a reference cycle the workers
    would be shut down by the garbage collector, which takes five seconds each."""

    def __init__(self, at: _Position, batches: int) -> None:
        self.at, self.batches = at, batches

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.at.epoch
        return ((epoch, batch) for batch in range(self.at.batch, self.batches))

    def __len__(self) -> int:
        return self.batches - self.at.batch


def build_loader(
    sources: Sequence[Source | Mapping[str, Any]],
    *,
    batch_size: int,
    image_size: int,
    auto_augment: bool = True,
    back_translation: bool = True,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    context_length: int = 77,
    transform: TrainTransform | EvalTransform | None = None,
    shuffle_window_shards: int = 16,
    reader_groups: int = 1,
    prefetch: int = 4,
    pin_memory: bool = False,
    index_cache: str | None = None,
) -> PairLoader:
    """The training stream of this rank.

    Yields ``dict(pixels [b, 3, S, S] float32, ids [b, n2] int64 padded with 0, lengths [b] int64, group [b]
    int64, key list[str])`` with b = ``batch_size`` pairs of this rank. Every rank gets the same number of
    full batches; an epoch has ``loader.pairs`` pairs over all ranks, each once (times its source's weight).

    ``shuffle_window_shards``: shards whose samples are shuffled among each other, and the number a reader keeps open.
    ``reader_groups``: reading groups with shards of their own. 1 is right for one machine; else the number of ranks
    (or a divisor of it), so that a rank does not read from every shard. The order of pairs depends on it,
    so keep it when the number of ranks changes; it must divide the global batch. ``index_cache``: folder
    that keeps the scan of the shards. ``transform`` replaces the training transform. ``loader.counters``
    names what was missing or broken so far.
    """
    parsed = [s if isinstance(s, Source) else _source(s) for s in sources]
    if not parsed:
        raise UserError(
            "no data: data.sources is empty; give e.g. data.sources=[{shards: DIR, captions: DIR}]"
        )
    if batch_size * world_size % reader_groups:
        raise UserError(
            f"data.reader_groups={reader_groups} does not divide the global batch {batch_size * world_size}"
        )
    stream = PairStream(
        [index_source(source, index_cache, max(1, workers)) for source in parsed],
        batch_size=batch_size,
        transform=transform or TrainTransform(image_size, auto_augment),
        back_translation=back_translation,
        seed=seed,
        rank=rank,
        world_size=world_size,
        context_length=context_length,
        shuffle_window_shards=shuffle_window_shards,
        reader_groups=reader_groups,
    )
    return PairLoader(stream, epoch=epoch, workers=workers, prefetch=prefetch, pin_memory=pin_memory)


def _source(values: Mapping[str, Any]) -> Source:
    known = {f.name for f in dataclasses.fields(Source)}
    unknown = sorted(set(values) - known)
    if unknown or "shards" not in values:
        raise UserError(
            f"data.sources has an entry {dict(values)}; it needs shards and may have captions and weight, "
            f"not {', '.join(unknown) or 'nothing else'}"
        )
    source = Source(**values)
    if source.weight < 0:
        raise UserError(f"data.sources: weight {source.weight} of {source.shards} must not be negative")
    return source


def _hash(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")
