"""Go through a whole test set with a progress display: the settings that protocols share, images, texts, sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from filip.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.datasets import Batch, EvalSet, Sample, batches
from filip.eval.encoders import Encoder
from filip.eval.families import AUTO, PROMPTS, prompts_for
from filip.eval.features import FeatureStore, ShardEncodedError, features_of_batches
from filip.eval.scorer import Scorer, scorer_for
from filip.eval.sharing import ALONE, Share
from filip.progress import Progress, say

T = TypeVar("T")


@dataclass(frozen=True)
class ImageSource:
    """A data set to go through, and the batches to take it in.

    title: in the progress display and in messages. card, root: where the set is from; without a card its features are
    not kept. with_probe: where features are kept, those for similarities and those for a linear probe are of one pass.
    another_follows: a job that only encodes a part (``shard=``) has another set to encode after this one.
    """

    data: EvalSet
    title: str
    batch_size: int = 64
    workers: int = 0
    card: BenchmarkCard | None = None
    root: str | Path = "."
    with_probe: bool = False
    another_follows: bool = False

    @property
    def count(self) -> int:
        """Return the number of batches."""
        return -(-len(self.data) // self.batch_size)


def encoded_batches(
    source: ImageSource, scorer: Scorer, store: FeatureStore | None = None, kind: str = "image"
) -> Iterator[tuple[Tensor, Batch]]:
    """Yield (features, batch) through the set, in order; batches whose features are kept in ``store`` are not read.

    kind: "image", for the scorer, on its device; or "probe", for a linear probe, on the CPU.
    Images that cannot be read are left out: a line on stderr names each. Raises UserError if nothing is left, and
    ShardEncodedError if only a part is to be encoded, without giving any of it; if another set follows, it just ends.
    """
    any_batch = False
    for item in _features_of(source, range(source.count), scorer, store, kind):
        if item[1].keys:
            any_batch = True
            yield item
    _require(any_batch or (store is not None and store.shard is not None), source.title)


def collect(scorer: Scorer, source: ImageSource, keep: Callable[[Tensor, Batch], T]) -> list[T]:
    """Return ``keep(image features, batch)`` of every batch of a set, in order; see :func:`encoded_batches`.

    Processes that evaluate together each read and encode some of the batches, and all of them get what was kept of all.
    """

    def encode(numbers: Iterable[int]) -> list[T | None]:
        read = _features_of(source, numbers, scorer, scorer.store, "image")
        return [keep(features, batch) if batch.keys else None for features, batch in read]

    parts = scorer.share.together(source.count, encode)
    batches_read = [of_batch for of_batch in parts if of_batch is not None]
    _require(bool(batches_read), source.title)
    return batches_read


def _features_of(
    source: ImageSource, numbers: Iterable[int], scorer: Scorer, store: FeatureStore | None, kind: str
) -> Iterator[tuple[Tensor, Batch]]:
    """Yield every batch with its features, including batches without a readable image."""
    device = "cpu" if kind == "probe" else scorer.encoder.device
    stored = None if store is None or source.card is None else store.of_set(source.card, source.root, source.batch_size)

    def encode(pixels: Tensor) -> dict[str, Tensor]:
        both = scorer.encode_images_and_probe(pixels) if source.with_probe and stored is not None else None
        if both is not None:
            return both
        return {kind: scorer.encode_images(pixels) if kind == "image" else scorer.encoder.probe_features(pixels)}

    def read(some: list[int]) -> Iterator[Batch]:
        part = _SomeBatches(source.data, source.batch_size, some)
        with Progress(source.title, "images", len(part)) as progress:
            for batch in batches(part, scorer.transform, source.batch_size, source.workers):
                for problem in batch.undecodable:
                    say(f"{source.title}: left out an unreadable image, {problem}")
                yield batch
                progress.add(len(batch.keys) + len(batch.undecodable))

    if store is None or stored is None:
        yield from features_of_batches(None, numbers, kind, encode, read, device)
        return
    if store.shard is not None:
        mine = list(store.own(source.count))
        done = sum(1 for _ in features_of_batches(stored, mine, kind, encode, read, device))
        store.trim(stored)
        say(f"{source.title}: {done:,} of {source.count:,} batches are encoded")
        if not source.another_follows:
            raise ShardEncodedError(source.title)
        return
    yield from features_of_batches(stored, numbers, kind, encode, read, device)
    store.trim(stored)


class _SomeBatches(EvalSet):
    """Some batches of a set, in order, one after the other; only the last batch of the set may be a short one."""

    def __init__(self, data: EvalSet, batch_size: int, numbers: Iterable[int]) -> None:
        self.data, self.classes = data, data.classes
        self.places = [
            place
            for number in numbers
            for place in range(number * batch_size, min((number + 1) * batch_size, len(data)))
        ]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        return self.data[self.places[index]]

    def name_of(self, index: int) -> str:
        return self.data.name_of(self.places[index])


def _require(found: bool, title: str) -> None:
    if not found:
        raise UserError(f"{title}: the test set has no readable image")


class CutTexts:
    """A counter of the texts that a model does not read to their end."""

    def __init__(self, scorer: Scorer):
        self.encoder, self.texts, self.cut, self.longest = scorer.encoder, 0, 0, 0

    def count(self, texts: Sequence[str]) -> None:
        counts = self.encoder.token_counts(texts)
        self.texts += len(counts)
        self.cut += sum(count > self.encoder.context_length for count in counts)
        self.longest = max(self.longest, *counts)

    def result(self) -> dict[str, Any]:
        """Return the entry of the result file: how many texts were cut at how many tokens; empty if none was."""
        if not self.cut:
            return {}
        said = (
            f"{self.cut:,} of {self.texts:,} captions are longer than the model's {self.encoder.context_length} tokens "
            f"(the longest has {self.longest}) and were cut"
        )
        return {"cut_captions": self.cut, "cut_at": self.encoder.context_length, "cut_note": said}


def size_note(card: BenchmarkCard, n: int) -> str | None:
    """Return why a number cannot be compared with published ones, by the images or the card; None if it can."""
    if card.published_size not in (None, n):
        return f"{n} images, but the published numbers are of {card.published_size}: not comparable"
    if card.size is None or card.size == n:
        said = card.not_comparable
        return f"not comparable with published numbers: {said}" if said else None
    return f"{n} images, but the card's split has {card.size}: not comparable with published numbers"


@dataclass(frozen=True)
class Context:
    """The surroundings of an evaluation.

    root: folder below which the data sets of cards are. prompts: a prompt file, one prompt with {c} in it, or
    "auto": the file of the model's family. store: the image features that are kept. share: this process among those
    that evaluate together. text_tokens: which take part in a token-wise score (:mod:`filip.eval.text_tokens`).
    """

    root: str = "."
    prompts: str = PROMPTS
    batch_size: int = 64
    workers: int = 0
    store: FeatureStore | None = None
    share: Share = ALONE
    text_tokens: str = "all"
    family_prompts: str = PROMPTS  # the file of the model's family

    @property
    def prompt_file(self) -> str:
        """Return the prompt file for protocols that need a prompt for each class."""
        return self.family_prompts if "{c}" in self.prompts else self.prompts

    def of(self, encoder: Encoder, card: BenchmarkCard) -> Context:
        """Return the context with the prompts that a model has on a card's benchmark, where they are "auto"."""
        prompts = prompts_for(encoder.family, card)
        return replace(self, prompts=prompts if self.prompts == AUTO else self.prompts, family_prompts=prompts)

    def source(self, data: EvalSet, card: BenchmarkCard, title: str = "", **more: bool) -> ImageSource:
        """Return a card's data set to go through."""
        return ImageSource(data, title or card.name, self.batch_size, self.workers, card, self.root, **more)

    def scorer(self, encoder: Encoder) -> Scorer:
        """Return the scorer that fits the model, with the kept features and the processes of this evaluation."""
        scorer = scorer_for(encoder)
        scorer.store, scorer.share, scorer.text_tokens = self.store, self.share, self.text_tokens
        return scorer
