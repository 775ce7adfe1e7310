"""Stream shards that are not local (``s3://``, ``gs://``, ``hf://``, ``https://``, ``pipe:``) through webdataset.

Local shards have an index, from which :mod:`filip.loading.loader` reads any batch of any epoch. Shards in a
bucket are read from front to back instead. The shards of all passes are one endless list, of which each rank takes
every n-th, and of these each worker (webdataset's way of splitting); so every shard is read once a pass, by one worker.
A checkpoint holds which places of the list are finished, whoever read them: a resumed run goes on with the others, on
any number of ranks and workers.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import random
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import webdataset
from torch.utils.data import IterableDataset, get_worker_info

from filip.common.errors import UserError
from filip.data.remote_tars import explained
from filip.data.sidecar import group_id
from filip.images.eval_transform import EvalTransform
from filip.images.rgb import UNDECODABLE
from filip.loading.batches import Batch, Pair, batch_of, batches_an_epoch, hash_of, in_workers, sentence_of
from filip.loading.config import Source, StreamConfig, is_streamed
from filip.loading.crops import read_image
from filip.loading.loader import PairLoader
from filip.loading.pair_index import ShardCaptions
from filip.loading.remote_shards import samples_in, shard_urls
from filip.loading.transforms import TrainTransform
from filip.sets.tar_index import IMAGE_SUFFIXES

log = logging.getLogger(__name__)
# Encoded samples that a worker shuffles among each other, for each shard that it reads in turn: with 16 some 100 MB at
# 256 px. A shard's pictures are often of one kind, or one host's.
BUFFERED = 125
USELESS = 1_000  # samples, or shards, in a row without a pair end the run


class StreamPlace(NamedTuple):
    """A shard's place in the endless list, and its address."""

    number: int
    visit: int  # the pass
    source: int
    url: str


def _captions(source: Source, url: str) -> ShardCaptions | None:
    """Return the side-car of a shard: the same number in the captions folder, which may be remote; None if missing."""
    names = re.findall(r"([^/\s]+)\.tar\b", url)
    if not names:
        raise UserError(f"{url} names no NAME.tar, so that NAME.parquet could be its captions; give captions: null")
    file = f"{str(source.captions).rstrip('/')}/{names[-1]}.parquet"
    if not is_streamed(file):
        return ShardCaptions.from_sidecar(Path(file)) if Path(file).exists() else None
    try:
        return ShardCaptions.from_sidecar(Path(file), io.BytesIO(fsspec.open(file, "rb").open().read()))
    except FileNotFoundError:
        return None
    except UserError:
        raise
    except Exception as error:
        raise explained(file, error) from error


def _in_turn(streams: Sequence[Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    waiting = deque(streams)
    while waiting:
        stream = waiting.popleft()
        for item in stream:
            yield item
            waiting.append(stream)
            break


class ShardStream(IterableDataset[Batch]):
    """This rank's batches, without end. Runs in the workers.

    ``first`` and ``finished``: places of the endless list before ``first``, or in ``finished``, are not read.
    """

    def __init__(
        self, sources: Sequence[Source], config: StreamConfig, transform: TrainTransform | EvalTransform
    ) -> None:
        super().__init__()
        self.sources, self.config, self.transform = list(sources), config, transform
        self.urls = [shard_urls(source) for source in sources]
        self.first, self.finished = 0, set[int]()
        self._problems: Counter[str] = Counter()
        self._ended: dict[int, int] = {}  # samples of the places that were read to their end

    def _shares(self) -> list[int]:
        """Return how many shards of each source a pass reads."""
        return [round(source.weight * len(urls)) for source, urls in zip(self.sources, self.urls, strict=True)]

    @property
    def shards(self) -> int:
        """Return how many shards a pass reads."""
        return sum(self._shares())

    def _order(self, visit: int) -> list[tuple[int, str]]:
        """Return (source, address) of each shard of a pass."""
        rng = random.Random(hash_of(self.config.seed, visit, "shards"))
        order: list[tuple[int, str]] = []
        for source, (urls, share) in enumerate(zip(self.urls, self._shares(), strict=True)):
            whole, part = divmod(share, len(urls))
            order += [(source, url) for url in [*urls * whole, *rng.sample(urls, part)]]
        rng.shuffle(order)
        return order

    def _places(self) -> Iterator[StreamPlace]:
        """Yield the places of this rank, as ``webdataset.split_by_node`` would: every n-th that is not finished."""
        rank, ranks = self.config.rank, self.config.world_size
        return itertools.islice(self._unfinished(), rank, None, ranks)

    def _unfinished(self) -> Iterator[StreamPlace]:
        for visit in itertools.count(self.first // self.shards):
            for index, (source, url) in enumerate(self._order(visit)):
                number = visit * self.shards + index
                if number >= self.first and number not in self.finished:
                    yield StreamPlace(number, visit, source, url)

    def __iter__(self) -> Iterator[Batch]:
        stages = self._places, webdataset.split_by_worker, self._shuffled, self._batches
        return iter(webdataset.DataPipeline(*stages))

    def _shuffled(self, places: Iterator[StreamPlace]) -> Iterator[dict[str, Any]]:
        """Shuffle the samples of each pass in a buffer, which is empty at its end, so that each comes once a pass."""
        worker = info.id if (info := get_worker_info()) else 0
        for visit, of_pass in itertools.groupby(places, lambda place: place.visit):
            rng = random.Random(hash_of(self.config.seed, visit, self.config.rank, worker))
            left = iter(of_pass)
            window = self.config.data.shuffle_window_shards
            shards = [self._samples(left) for _ in range(window)]  # each takes the next place when it is done
            buffer = window * BUFFERED
            yield from webdataset.shuffle(buffer, initial=buffer // 4, rng=rng)(_in_turn(shards))

    def _samples(self, places: Iterator[StreamPlace]) -> Iterator[dict[str, Any]]:
        """Yield the samples of the shards, each with its place and, if there are side-cars, its row in them."""
        empty = 0
        for place in places:
            captions, rows, count = None, {}, 0
            if self.sources[place.source].captions is not None:
                captions = _captions(self.sources[place.source], place.url)
                self._problems["shards_without_sidecar"] += captions is None
                rows = {} if captions is None else {key: row for row, key in enumerate(captions.keys.to_pylist())}
            for sample in samples_in(place.url, self._problems):
                count += 1
                yield {**sample, "place": place, "captions": captions, "row": rows.get(sample["__key__"])}
            self._ended[place.number] = count
            empty = 0 if count else empty + 1
            if empty == min(USELESS, 2 * self.shards):
                raise UserError(f"{empty} shards in a row hold no sample, the last of them {place.url}")

    def _batches(self, samples: Iterator[dict[str, Any]]) -> Iterator[Batch]:
        """Yield full batches. ``read``: samples that were taken of each place, ``ended``: how many it has."""
        counts, useless = Counter[int](), 0
        pairs: list[Pair] = []
        for sample in samples:
            counts[sample["place"].number] += 1
            try:
                pairs.append(self._pair(sample))
                useless = 0
            except UNDECODABLE as error:
                self._problems["undecodable"] += 1
                log.debug("undecodable image %s in %s: %s", sample["__key__"], sample["place"].url, error)
            except KeyError as error:
                self._problems[error.args[0]] += 1
            useless += not pairs or pairs[-1].key != sample["__key__"]
            if useless == USELESS:
                raise UserError(
                    f"{useless} samples in a row are not pairs ({dict(self._problems)}): {sample['place'].url}"
                )
            if len(pairs) == self.config.batch_size:
                batch = batch_of(pairs, self._problems, self.config)
                yield {**batch, "read": dict(counts), "ended": dict(self._ended)}
                for collection in (pairs, counts, self._problems, self._ended):
                    collection.clear()

    def _pair(self, sample: dict[str, Any]) -> Pair:
        """Return the pair of a sample. Raises KeyError with the missing name, or one of UNDECODABLE."""
        place, captions, row = sample["place"], sample["captions"], sample["row"]
        images = [data for suffix, data in sample.items() if suffix in IMAGE_SUFFIXES]
        if not images:
            raise KeyError("missing_image")
        if captions is None:
            if self.sources[place.source].captions is not None:
                raise KeyError("missing_sidecar")
            if "txt" not in sample:
                raise KeyError("missing_caption")
        elif row is None:
            raise KeyError("not_in_sidecar")
        elif not captions.counts[row]:
            raise KeyError("missing_caption")
        key = hash_of(self.config.seed, place.visit, place.source, place.url, sample["__key__"])
        rng = random.Random(key)
        draw = rng.random()  # always drawn: back-translation must not change the image
        # the last of several images with one key counts, as in the index of local shards
        image = read_image(self.transform, images[-1], rng, self.config.data)
        if captions is None:
            text = sample["txt"].decode("utf-8", "replace")
            return Pair(image, text, group_id(text), sample["__key__"])
        text = captions.text(row, draw, self.config.data.back_translation)
        return Pair(image, text, int(captions.group[row]), sample["__key__"])


class StreamLoader:
    """Iterate over an epoch of a stream, then over the next: like PairLoader, but a position is a list of shards."""

    def __init__(self, stream: ShardStream, pin_memory: bool = False) -> None:
        self.stream, self.epoch, self.batch = stream, 0, 0
        self.counters: Counter[str] = Counter()
        config = stream.config
        self.pairs = sum(round(source.weight * (source.pairs or 0)) for source in stream.sources)
        pairs = f"{self.pairs} pairs (data.sources.pairs)"
        self._batches = batches_an_epoch(self.pairs // config.global_batch, pairs, config)
        self._read: Counter[int] = Counter()  # samples of each place that were given
        self._ended: dict[int, int] = {}
        self._endless: Iterator[Batch] | None = None
        self._loader = in_workers(stream, config, pin_memory)

    def __len__(self) -> int:
        """Return the batches per epoch, by the number of pairs in the sources' settings."""
        return self._batches

    def describe(self) -> str:
        """Return how many sources and shards there are, and what streaming them loses."""
        workers = self.stream.config.world_size * max(1, self.stream.config.data.workers)
        window = self.stream.config.data.shuffle_window_shards
        few = f"; fewer than the {workers} workers that read them" if self.stream.shards < workers else ""
        return (
            f"{len(self.stream.sources)} sources, {self.stream.shards} shards, streamed{few}. Unlike local shards: "
            f"a worker shuffles among {window * BUFFERED:,} samples of {window} shards, and a resumed run reads the "
            "shards that it was at again"
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches from ``self.batch`` to the end of the epoch; then the loader is at the next epoch.

        The workers go on from one epoch to the next, and read ahead across its end.
        """
        if self._endless is None:
            self._endless = iter(self._loader)
        while self.batch < self._batches:
            try:
                batch = next(self._endless)
            except UserError as error:
                self._endless = None
                raise UserError(sentence_of(error)) from None
            self.counters.update({name: n for name, n in batch.pop("problems").items() if n})
            self._read.update(batch.pop("read"))
            self._ended |= batch.pop("ended")
            self.batch += 1
            yield batch
        self.epoch, self.batch = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Return where this rank's stream is after the last batch; see :meth:`merged`."""
        now = {place for place, samples in self._ended.items() if self._read[place] == samples}
        return {
            "epoch": self.epoch,
            "pairs_done": self.batch * self.stream.config.global_batch,
            "fingerprint": self.fingerprint(),
            "counters": dict(self.counters),
            "first": self.stream.first,
            "finished": sorted(self.stream.finished | now),
        }

    @staticmethod
    def merged(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the state of all ranks' streams, of which each has finished other shards."""
        first = states[0]["first"]
        finished = {place for state in states for place in state["finished"]}
        while first in finished:
            finished.remove(first)
            first += 1
        return {**states[0], "first": first, "finished": sorted(finished)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the shards that are not finished. Workers, ranks and batch size may differ.

        Raises UserError if the shards, the seed or the weights are others.
        """
        if state["fingerprint"] != self.fingerprint():
            raise UserError(
                "the checkpoint's loader state belongs to other data (shards, weights or seed); "
                "resume with the same data.sources and seed, or start afresh with resume=never"
            )
        self.epoch = int(state["epoch"])
        self.batch = min(int(state["pairs_done"]) // self.stream.config.global_batch, self._batches)
        self.counters = Counter(state["counters"])
        self.stream.first, self.stream.finished = int(state["first"]), set(state["finished"])
        self._read, self._ended, self._endless = Counter(), {}, None

    def fingerprint(self) -> str:
        """Return the identity of everything that the order of shards depends on."""
        weights = [source.weight for source in self.stream.sources]
        what = {"seed": self.stream.config.seed, "streamed": self.stream.urls, "weights": weights}
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


Loader = PairLoader | StreamLoader


def build_stream_loader(
    config: StreamConfig, *, transform: TrainTransform | EvalTransform | None = None, pin_memory: bool = False
) -> StreamLoader:
    """Build the stream of one rank from shards that are not local; batches are like ``build_loader``'s.

    Raises UserError if there is nothing to train on.
    """
    data = config.data
    for source in data.sources:
        if not is_streamed(source.shards):
            raise UserError(
                f"data.sources: {source.shards} is local and others are streamed, which do not mix: copy it to them, "
                "or them to it"
            )
        if source.pairs is None:
            raise UserError(
                f"data.sources: {source.shards} is streamed, and a stream cannot be counted: give the number of pairs "
                "in all its shards, {shards: …, pairs: N}, or its manifest"
            )
    for name, value in {
        "feature_cache": config.feature_maps is not None,
        "reader_groups": data.reader_groups != 1,
    }.items():
        if not value:
            continue
        raise UserError(f"data.{name} is for local shards, and these are streamed; leave it out")
    config.tokenizer.prepare()
    stream = ShardStream(data.sources, config, transform or TrainTransform(config.image_size, data))
    if not stream.shards:
        raise UserError("data.sources: the weights leave no shard to read; raise them")
    return StreamLoader(stream, pin_memory)
