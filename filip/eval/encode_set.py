"""Go through a whole test set with a progress display: the settings that protocols share, images, texts, sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from filip.common.errors import UserError
from filip.common.progress import Progress, say
from filip.eval.cards import BenchmarkCard
from filip.eval.datasets import Batch, EvalSet, batches
from filip.eval.encoders import Encoder
from filip.eval.families import AUTO, PROMPTS, prompts_for
from filip.eval.scorer import Scorer, scorer_for


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
    "auto": the file of the model's family. text_tokens: the kind of text tokens that a token-wise score reads
    (:mod:`filip.eval.text_tokens`).
    """

    root: str = "."
    prompts: str = PROMPTS
    batch_size: int = 64
    workers: int = 0
    text_tokens: str = "all"
    family_prompts: str = PROMPTS  # the file of the model's family

    @property
    def prompt_file(self) -> str:
        """Return the prompt file for protocols that need a prompt for each class."""
        return self.family_prompts if "{c}" in self.prompts else self.prompts

    def of(self, encoder: Encoder, card: BenchmarkCard) -> Context:
        """Return the context with the prompts that a model has on a card's benchmark, where they are "auto"."""
        prompts = prompts_for(encoder.family, card)
        file = PROMPTS if "{c}" in prompts else prompts
        return replace(self, prompts=prompts if self.prompts == AUTO else self.prompts, family_prompts=file)

    def encoded(
        self, data: EvalSet, title: str, scorer: Scorer, encode: Callable[[Tensor], Tensor] | None = None
    ) -> Iterator[tuple[Tensor, Batch]]:
        """Yield (features, batch) through a set, in order.

        title: in the progress display and in messages. encode: pixels of a batch -> features; the scorer's features of
        images by default. Images that cannot be read are left out: a line on stderr names each. Raises UserError if
        nothing is left.
        """
        any_batch = False
        with Progress(title, "images", len(data)) as progress:
            for batch in batches(data, scorer.transform, self.batch_size, self.workers):
                for problem in batch.undecodable:
                    say(f"{title}: left out an unreadable image, {problem}")
                if batch.keys:
                    any_batch = True
                    yield (encode or scorer.encode_images)(batch.pixels), batch
                progress.add(len(batch.keys) + len(batch.undecodable))
        if not any_batch:
            raise UserError(f"{title}: the test set has no readable image")

    def scorer(self, encoder: Encoder) -> Scorer:
        """Return the scorer that fits the model."""
        scorer = scorer_for(encoder)
        scorer.text_tokens = self.text_tokens
        return scorer
