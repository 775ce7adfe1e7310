"""The settings that the protocols of one evaluation share: where the data are, in which batches, who takes part."""

from __future__ import annotations

from dataclasses import dataclass

from filip.eval.encoders import Encoder
from filip.eval.features import FeatureStore
from filip.eval.scorer import Scorer, scorer_for
from filip.eval.sharing import ALONE, Share

PROMPTS = "eval/prompts.yaml"


@dataclass(frozen=True)
class Context:
    """The surroundings of an evaluation.

    root: folder below which the data sets of cards lie. prompts: a prompt file, or one prompt with {c} in it.
    store: the image features that are kept. share: this process among those that evaluate together.
    """

    root: str = "."
    prompts: str = PROMPTS
    batch_size: int = 64
    workers: int = 0
    store: FeatureStore | None = None
    share: Share = ALONE

    @property
    def prompt_file(self) -> str:
        """Return the prompt file for protocols to which one prompt for all classes says nothing."""
        return PROMPTS if "{c}" in self.prompts else self.prompts

    def scorer(self, encoder: Encoder) -> Scorer:
        """Return the scorer that fits the model, with the kept features and the processes of this evaluation."""
        scorer = scorer_for(encoder)
        scorer.store, scorer.share = self.store, self.share
        return scorer
