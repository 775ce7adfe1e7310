"""The settings that the protocols of one evaluation share: where the data are, in which batches, who takes part."""

from __future__ import annotations

from dataclasses import dataclass, replace

from filip.eval.benchmark import BenchmarkCard
from filip.eval.encoders import Encoder
from filip.eval.families import AUTO, PROMPTS, prompts_for
from filip.eval.features import FeatureStore
from filip.eval.scorer import Scorer, scorer_for
from filip.eval.sharing import ALONE, Share


@dataclass(frozen=True)
class Context:
    """The surroundings of an evaluation.

    root: folder below which the data sets of cards lie. prompts: a prompt file, one prompt with {c} in it, or
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
        """Return the prompt file for protocols to which one prompt for all classes says nothing."""
        return self.family_prompts if "{c}" in self.prompts else self.prompts

    def of(self, encoder: Encoder, card: BenchmarkCard) -> Context:
        """Return the context with the prompts that a model has on a card's benchmark, where they are "auto"."""
        own = prompts_for(encoder.family, card)
        return replace(self, prompts=own if self.prompts == AUTO else self.prompts, family_prompts=own)

    def scorer(self, encoder: Encoder) -> Scorer:
        """Return the scorer that fits the model, with the kept features and the processes of this evaluation."""
        scorer = scorer_for(encoder)
        scorer.store, scorer.share, scorer.text_tokens = self.store, self.share, self.text_tokens
        return scorer
