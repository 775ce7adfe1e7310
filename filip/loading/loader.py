"""Load the stream of image-text pairs for training: batches as a function of (seed, epoch, batch number).

The content of global batch g depends on nothing else, so the number of workers, a restart and even the number
of ranks (at the same global batch size) change nothing, and the state to save is a batch number.
"""

from __future__ import annotations

import atexit
import errno
import gc
import hashlib
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import time
import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from filip.common.errors import DamagedFileError, UserError, plain
from filip.common.worker_pool import LOADER_START
from filip.data.remote_tars import address
from filip.images.eval_transform import EvalTransform
from filip.images.rgb import UNDECODABLE
from filip.loading.augment import TrainTransform
from filip.loading.augment_on_device import Crop, pack, read_image
from filip.loading.config import StreamConfig, batches_ahead
from filip.loading.epoch_order import EpochOrder, group_length
from filip.loading.pair_index import ShardCaptions, SourceIndex, index_source, sidecar_path
from filip.loading.tar_cache import TarCache

log = logging.getLogger(__name__)
T = TypeVar("T")
Batch = dict[str, Any]
PAUSES = (2.0, 10.0)  # seconds between the attempts to read from a disk that fails
_NEARBY, _ATTEMPTS = 5, 50  # images tried for one slot: within its shard, and before giving up
_ALERT, _END = 0.01, 0.1  # shares of replaced images that are told, and that end a training ...
_JUDGED = 500  # ... among so many at least: one bad picture of twelve is no damage


class Pair(NamedTuple):
    """An image (its feature map, or a crop that the device finishes) and a caption, as a batch takes them."""

    image: torch.Tensor | Crop
    text: str
    group: int
    key: str


class _OpenShard(NamedTuple):
    file: int  # descriptor of the tar
    captions: ShardCaptions
    maps: np.ndarray | None  # feature maps, if they are read instead of images


class PairStream(Dataset[Batch]):
    """Random access to this rank's batches: ``stream[epoch, batch]``. Runs in the workers."""

    def __init__(
        self, indices: Sequence[SourceIndex], config: StreamConfig, transform: TrainTransform | EvalTransform
    ) -> None:
        self.indices, self.config, self.transform = list(indices), config, transform
        self._counts = [index.counts for index in self.indices]
        self._weights = [index.source.weight for index in self.indices]
        self._order: EpochOrder | None = None
        self._open: OrderedDict[tuple[int, int], _OpenShard] = OrderedDict()
        self.cache = TarCache.of(config.data)

    @property
    def group_share(self) -> int:
        """Return how many pairs of a global batch come from one reader group."""
        return self.config.global_batch // self.config.data.reader_groups

    def _groups(self) -> Iterator[tuple[int, int, int]]:
        """Return the reader groups of this rank, each with the start and end of its part of a batch."""
        share, size = self.group_share, self.config.batch_size
        first, end = self.config.rank * size, (self.config.rank + 1) * size
        for group in range(first // share, (end - 1) // share + 1):
            yield group, max(first - group * share, 0), min(end - group * share, share)

    def slots(self, epoch: int, batch: int) -> list[tuple[int, int, int]]:
        """Return (source, sample, visit) of each pair in this rank's part of global batch ``batch``."""
        if self._order is None or self._order.epoch != epoch:
            data = self.config.data
            self._order = EpochOrder(
                self._counts,
                self._weights,
                seed=self.config.seed,
                epoch=epoch,
                shuffle_window_shards=data.shuffle_window_shards,
                reader_groups=data.reader_groups,
            )
        result: list[tuple[int, int, int]] = []
        for group, first, end in self._groups():
            start = batch * self.group_share
            numbers = self._order.slots(group, start + first, start + end)
            result += zip(*(column.tolist() for column in numbers), strict=True)
        return result

    def __getitem__(self, item: tuple[int, int]) -> Batch:
        epoch, batch = item
        problems, damaged = Counter[str](), Counter[str]()
        pairs = [self._pair(epoch, *slot, problems, damaged) for slot in self.slots(epoch, batch)]
        return batch_of(pairs, problems, self.config) | {"damaged": dict(damaged)}

    def _pair(
        self, epoch: int, source: int, sample: int, visit: int, problems: Counter[str], damaged: Counter[str]
    ) -> Pair:
        """Return an image or its feature map, with a caption.

        One that cannot be decoded is replaced by another, and both facts are counted.

        Replacing keeps every batch full on every rank without communication; the substitute is a
        function of the slot, so it is the same for any number of workers and after a restart.
        """
        index, data_config = self.indices[source], self.config.data
        substitutes = random.Random(hash_of(self.config.seed, epoch, visit, source, sample, "substitute"))
        for attempt in range(_ATTEMPTS):
            shard = int(np.searchsorted(index.starts, sample, side="right")) - 1
            (_, captions, maps), data = self._read(source, shard, sample)
            row = int(index.row[sample])
            key = captions.key(row)
            rng = random.Random(hash_of(self.config.seed, epoch, visit, source, shard, key))
            draw = rng.random()  # always drawn: back-translation must not change the image
            try:
                if maps is None:
                    image = read_image(self.transform, data, rng, data_config)
                else:
                    features = np.array(maps[sample - int(index.starts[shard])])
                    if np.isnan(features[0, 0, 0]):
                        raise ValueError("not decodable when the feature maps were made")
                    image = torch.from_numpy(features)
                text = captions.text(row, draw, data_config.back_translation)
                problems["substituted"] += attempt > 0
                return Pair(image, text, int(captions.group[row]), key)
            except UNDECODABLE as error:
                problems["undecodable"] += 1
                damaged[str(index.tars[shard])] += attempt == 0
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

    def _shard(self, source: int, shard: int) -> _OpenShard:
        place = (source, shard)
        if place in self._open:
            self._open.move_to_end(place)
            return self._open[place]
        index = self.indices[source]
        tar = index.tars[shard]
        # a window of shards and one more, per source and reader group
        needed = (self.config.data.shuffle_window_shards + 1) * len(self.indices) * sum(1 for _ in self._groups())
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        while len(self._open) >= max(1, min(needed, descriptors // 2)):
            os.close(self._open.popitem(last=False)[1].file)
        if index.source.captions is None:
            captions = ShardCaptions.from_tar(tar, self.cache)
        else:
            captions = ShardCaptions.from_sidecar(sidecar_path(index.source, tar))
        folder = self.config.feature_maps
        maps = None if folder is None else open_maps(index.map_path(folder, shard))
        self._open[place] = opened = _OpenShard(self.cache.open(tar), captions, maps)
        return opened

    def _read(self, source: int, shard: int, sample: int) -> tuple[_OpenShard, bytes]:
        """Return a shard, and the bytes of an image in it unless it has feature maps."""
        index = self.indices[source]

        def read() -> tuple[_OpenShard, bytes]:
            try:
                opened = self._shard(source, shard)
                if opened.maps is not None:
                    return opened, b""
                size, offset = int(index.size[sample]), int(index.offset[sample])
                data = os.pread(opened.file, size, offset)
                if len(data) < size:
                    raise OSError(errno.EIO, f"it ends after {len(data):,} of an image's {size:,} bytes")
                return opened, data
            except OSError:  # the next attempt opens the file anew: a stale handle of NFS stays stale
                if stale := self._open.pop((source, shard), None):
                    os.close(stale.file)
                raise

        return patiently(read, index.tars[shard])


def open_maps(path: Path) -> np.ndarray:
    """Return a shard's feature maps, mapped into memory."""
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"cannot read the feature maps {path}: {error}; delete the file and start again, and they are made anew"
        ) from error


def patiently(read: Callable[[], T], tar: Path) -> T:
    """Return the result of ``read``, tried three times since disks fail; raise UserError after the third failure."""
    for pause in (*PAUSES, None):
        try:
            return read()
        except (OSError, UserError) as error:
            named = isinstance(error, UserError)
            if pause is None or (named and not isinstance(error.__cause__, OSError)):
                sentence = f"cannot read the shard {address(tar) or tar}: {plain(error)}"
                raise error if named else DamagedFileError(sentence) from error
            log.warning("%s: %s; trying again in %g s", tar, plain(error), pause)
            time.sleep(pause)
    raise AssertionError


@dataclass
class _Position:
    epoch: int
    batch: int  # batches yielded


class PairLoader:
    """Iterate over the rest of an epoch's batches; see :func:`build_loader`."""

    def __init__(self, stream: PairStream, pin_memory: bool = False) -> None:
        self.stream, self._at = stream, _Position(0, 0)
        self.counters, self._damaged, self._given = Counter[str](), Counter[str](), 0
        if stream.config.rank == 0:  # all ranks find the same, and their counters are summed
            for index in stream.indices:
                self.counters.update(index.problems)
        if self.counters:
            log.warning("not all of the data is usable: %s", dict(self.counters))
        config, groups = stream.config, stream.config.data.reader_groups
        lengths = [group_length(stream._counts, stream._weights, group, groups) for group in range(groups)]
        self.pairs = sum(lengths)
        self._batches = min(lengths) // stream.group_share
        if not self._batches:
            raise UserError(
                f"{self.pairs} pairs do not fill one global batch of {config.global_batch} "
                f"({config.batch_size} x {config.world_size} ranks): give global_batch=auto, or a smaller number"
            )
        rest = _Rest(self._at, self._batches)
        self._loader = in_workers(stream, config, pin_memory, sampler=rest, persistent_workers=config.data.workers > 0)

    @property
    def epoch(self) -> int:
        return self._at.epoch

    @property
    def batch(self) -> int:
        """Return how many batches of the epoch were yielded."""
        return self._at.batch

    def __len__(self) -> int:
        """Return the batches per epoch, the same on every rank; pairs that do not fill a global batch are left out."""
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from ``self.batch`` to the end of the epoch; then the loader is at the next epoch."""
        try:
            for batch in self._loader:
                self.counters.update({name: n for name, n in batch.pop("problems").items() if n})
                self._damaged.update(batch.pop("damaged"))
                self._given += len(batch["key"])
                self._at.batch += 1
                yield batch
        except UserError as error:
            # torch keeps the error in a reference cycle, and with it the iterator and its workers, which could not
            # end; and it puts a traceback before the worker's sentence
            traceback.clear_frames(error.__traceback__)
            sentence = str(error).rsplit(f"{type(error).__name__}: ", 1)[-1].strip()
            raise type(error)(sentence) from None
        self._at.epoch, self._at.batch = self._at.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream is after the last batch, in plain values; only the counters differ by rank."""
        return {
            "epoch": self.epoch,
            "pairs_done": self.batch * self.stream.config.global_batch,
            "fingerprint": self.fingerprint(),
            "files": [index.state for index in self.stream.indices],
            "counters": dict(self.counters),
        }

    def damage(self) -> str | None:
        """Return a sentence if more than 1 % of the images since the last answer were replaced; None if they are few.

        Raises DamagedFileError above 10 %: the training would learn from other data than those that were asked for.
        """
        given, replaced = self._given, self._damaged.total()
        if given < _JUDGED:
            return None
        worst = max(self._damaged, key=self._damaged.__getitem__, default="")
        self._given, self._damaged = 0, Counter()
        if replaced <= given * _ALERT:
            return None
        sentence = (
            f"{replaced:,} of {given:,} images on rank {self.stream.config.rank} could not be decoded and were "
            f"replaced, most of them in {address(Path(worst)) or worst}"
        )
        if replaced > given * _END:
            raise DamagedFileError(f"{sentence}. Restore the shard, and start again")
        return sentence

    def describe(self) -> str:
        """Return how many sources and shards there are, and where those are kept that are not here."""
        tars = [tar for index in self.stream.indices for tar in index.tars]
        far = sum(address(tar) is not None for tar in tars)
        cached = f", {far} of them fetched into {self.stream.cache.folder}" if far else ""
        return f"{len(self.stream.indices)} sources, {len(tars)} shards{cached}"

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the next batch. Workers and ranks may differ from the writers of the state.

        Raises UserError if the data, the seed or the weights have changed, or the global batch size does not divide
        the number of pairs already seen.
        """
        if state["fingerprint"] != self.fingerprint():
            raise UserError(
                "the checkpoint's loader state belongs to other data (shards, side-cars, weights or seed); "
                "resume with the same data.sources and seed, or start afresh with resume=never"
            )
        done, remainder = divmod(int(state["pairs_done"]), self.stream.config.global_batch)
        if remainder:
            raise UserError(
                f"the checkpoint stands after {state['pairs_done']} pairs of the epoch, not a multiple of the "
                f"global batch {self.stream.config.global_batch}; resume with the same global batch"
            )
        for index, files in zip(self.stream.indices, state.get("files", []), strict=False):
            if files != index.state and index.source.manifest is None and self.stream.config.rank == 0:
                log.warning(
                    "files of %s or its side-cars have changed since the checkpoint, in size or time; with a manifest "
                    "(filip data manifest) a training compares their content",
                    index.source.shards,
                )
        self._at.epoch, self._at.batch = int(state["epoch"]), done
        self.counters = Counter(state["counters"])

    def fingerprint(self) -> str:
        """Return the identity of everything that the order of pairs depends on."""
        what = {
            "seed": self.stream.config.seed,
            "shuffle_window_shards": self.stream.config.data.shuffle_window_shards,
            "reader_groups": self.stream.config.data.reader_groups,
            "sources": [
                [[t.name for t in index.tars], index.counts.tolist(), index.source.weight]
                for index in self.stream.indices
            ],
        }
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


class _Rest(Sampler[tuple[int, int]]):
    """Iterator over the batch numbers to come. It holds the position, not the loader: in a reference cycle the workers
    would be shut down by the garbage collector, which takes five seconds each."""

    def __init__(self, at: _Position, batches: int) -> None:
        self.at, self.batches = at, batches

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.at.epoch
        return ((epoch, batch) for batch in range(self.at.batch, self.batches))

    def __len__(self) -> int:
        return self.batches - self.at.batch


def build_loader(
    config: StreamConfig, *, transform: TrainTransform | EvalTransform | None = None, pin_memory: bool = False
) -> PairLoader:
    """Build the training stream of one rank.

    Yields ``dict(pixels [b, 3, S, S] uint8, ids [b, n2] int64 padded with 0, lengths [b] int64, group [b]
    int64, key list[str])`` with b = ``config.batch_size`` pairs of this rank. ``pixels`` are ``config.feature_maps``,
    float16, if these are given, and with ``data.augment_on=device`` they are ``Crops``. Every rank gets the same number
    of full batches; an epoch has ``loader.pairs`` pairs over all ranks, each image once (times its source's weight).
    ``transform`` replaces the training transform. ``loader.counters`` counts missing and broken samples so far.
    Raises UserError if there is nothing to train on.
    """
    data = config.data
    if not data.sources:
        raise UserError("no data: data.sources is empty; give e.g. data.sources=[{shards: DIR, captions: DIR}]")
    for source in data.sources:
        if source.weight < 0:
            raise UserError(f"data.sources: weight {source.weight} of {source.shards} must not be negative")
    if config.global_batch % data.reader_groups:
        raise UserError(
            f"data.reader_groups={data.reader_groups} does not divide the {config.global_batch} pairs of a global batch"
        )
    config.tokenizer.prepare()
    identities = config.identities or [None] * len(data.sources)
    indices = [
        index_source(source, TarCache.of(data), processes=max(1, data.workers), identity=identity)
        for source, identity in zip(data.sources, identities, strict=True)
    ]
    stream = PairStream(indices, config, transform or TrainTransform(config.image_size, data))
    return PairLoader(stream, pin_memory)


def batch_of(pairs: Sequence[Pair], problems: Mapping[str, int], config: StreamConfig) -> Batch:
    """Collate a batch; see :func:`build_loader`. ``problems``: faults of samples since the last one."""
    images: list[Any] = [pair.image for pair in pairs]
    ids, lengths = config.tokenizer.tokenize([pair.text for pair in pairs], config.context_length)
    return {
        "pixels": pack(images, config.image_size) if isinstance(images[0], tuple) else torch.stack(images),
        "ids": ids,
        "lengths": lengths,
        "group": torch.tensor([pair.group for pair in pairs], dtype=torch.int64),
        "key": [pair.key for pair in pairs],
        "problems": dict(problems),
    }


def in_workers(stream: Dataset[Batch], config: StreamConfig, pin_memory: bool, **options: Any) -> DataLoader[Batch]:
    """Return a loader of a stream's batches, made in ``data.workers`` processes."""
    workers = config.data.workers
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=LOADER_START if workers else None,
        prefetch_factor=batches_ahead(config) if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=prepare_worker,
        generator=torch.Generator(),  # otherwise each start would draw from torch's global one
        **options,
    )


def prepare_worker(_: int) -> None:
    """Prepare a worker: ignore signals, and share the memory of the training process for as long as possible.

    Schedulers signal every process of a job. A worker that died of SIGTERM would end the training before its save.

    A worker starts with its parent's pages, and gets a copy of each page that it writes to.
    A full garbage collection writes to every page with Python objects, some 75 MB; it leaves frozen objects out.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()


@atexit.register  # registered after multiprocessing's handler, so it runs before that
def _end_workers() -> None:
    """Kill the workers: at exit multiprocessing sends its daemons SIGTERM, which they ignore, and waits for ever."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def hash_of(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")
