"""The training loss: a weighted sum of named terms, each in a file of its own.

A new term is one file with a :class:`Term` and one line in :data:`TERMS`. Its weight is then ``loss.<name>`` in the
configuration; TensorBoard, log, result, watchdog and memory plan take it from here. A term of another package is found
by its entry point in the group ``filip.losses``, which filip.train.config asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from filip.errors import UserError
from filip.interaction import gather_ids
from filip.models import DualEncoder, Encoded
from filip.train.losses.hard_negatives import HARD_NEGATIVES
from filip.train.losses.pooled import POOLED
from filip.train.losses.sigmoid import SIGMOID, TOKEN_WISE_SIGMOID
from filip.train.losses.sparc import SPARC
from filip.train.losses.swapped_words import SWAPPED_WORDS
from filip.train.losses.term import BatchShape, LossInput, LossSettings, Term, TermOutput, sum_of
from filip.train.losses.text_conditioned import TEXT_CONDITIONED
from filip.train.losses.token_wise import TOKEN_WISE, scorer_parameters
from filip.train.losses.weights import Weight, WeightSchedule, check_every_step, parse_weight, weight_at

__all__ = [
    "TERMS", "BatchShape", "Loss", "LossInput", "LossOutput", "LossSettings", "Term", "TermOutput", "check_model",
    "exchanged", "resolve_weights",
]  # fmt: skip

SATURATED_LOSS = 1e-3  # below it a batch teaches next to nothing (HN-CLIP, 2026)
# In the order in which they are added up. The first one that counts names loss/i2t, accuracy/i2t and so on.
TERMS: dict[str, Term] = {
    "token_wise": TOKEN_WISE,
    "pooled": POOLED,
    "sigmoid": SIGMOID,
    "token_wise_sigmoid": TOKEN_WISE_SIGMOID,
    "sparc": SPARC,
    "text_conditioned": TEXT_CONDITIONED,
    "hard_negatives": HARD_NEGATIVES,
    "swapped_words": SWAPPED_WORDS,
}


class LossOutput(NamedTuple):
    """``loss`` is the weighted sum with its gradient; ``metrics`` are detached, under their TensorBoard names."""

    loss: Tensor
    metrics: dict[str, Tensor]


class Loss:
    """``loss(encoded, group, step)``: this rank's pairs against those of all ranks; ``group`` [b] int64."""

    def __init__(self, weights: Mapping[str, Weight], settings: LossSettings) -> None:
        """``weights``: of each term that counts, as :func:`resolve_weights` returns them."""
        self.weights, self.settings = dict(weights), settings

    def weights_at(self, step: int) -> dict[str, float]:
        """Of the terms that count in optimiser step ``step``, the first being 0."""
        found = {name: weight_at(weight, step) for name, weight in self.weights.items()}
        return {name: weight for name, weight in found.items() if weight}

    def __call__(self, encoded: Encoded, group: Tensor, step: int = 0) -> LossOutput:
        all_groups, offset = gather_ids(group)
        soft = self.settings.soft_targets
        batch = LossInput(
            encoded, group if soft else None, all_groups if soft else None, offset, self.settings, step
        )
        weights = self.weights_at(step)
        outputs = {name: TERMS[name].compute(batch) for name in weights}
        total = sum_of([weight * outputs[name].loss for name, weight in weights.items()])
        for value in encoded.parameters.values():
            total = (
                total + 0 * value.sum()
            )  # a gradient, also in the steps in which their term does not count
        saturated = (total.detach() < SATURATED_LOSS).float()
        metrics = {"loss/total": total, "monitor/saturated_share": saturated} | self._named(outputs)
        return LossOutput(total, {name: value.detach() for name, value in metrics.items()})

    def _named(self, outputs: dict[str, TermOutput]) -> dict[str, Tensor]:
        """Metrics of all terms under names of their own, the same in every step.

        The first term's keep their names. With several terms there is also ``loss/<term>`` for each, and the metrics
        of the later ones end in ``_<term>``.
        """
        metrics, first = {}, next(iter(self.weights))
        for term, output in outputs.items():
            if len(self.weights) > 1:
                metrics[f"loss/{term}"] = output.loss
            ending = "" if term == first else f"_{term}"
            metrics |= {f"{name}{ending}": value for name, value in output.metrics.items()}
        return metrics

    def chance(self, pairs: int, step: int = 0) -> float:
        """The loss of a model that knows nothing, in a contrastive batch of ``pairs``."""
        return sum(weight * TERMS[name].chance(pairs) for name, weight in self.weights_at(step).items())

    def parameters(self, model: DualEncoder) -> dict[str, Tensor]:
        """What terms and selection learn besides the towers: the values that ``model`` has, or those to start from."""
        initial = scorer_parameters(self.settings, model.config.embed_dim)
        for name in self.weights:
            initial |= TERMS[name].parameters(model.config.embed_dim)
        known = model.loss_parameters()
        return {
            name: known[name] if name in known and known[name].shape == value.shape else value
            for name, value in initial.items()
        }

    def memory(self, shape: BatchShape) -> int:
        """Bytes on one rank, of all terms."""
        return int(sum(TERMS[name].memory(shape) for name in self.weights))

    def reads_both(self, interaction: str) -> bool:
        """True if a term reads what a model of ``interaction`` does not give by itself: vectors, or tokens."""
        other = "vectors" if interaction == "token_wise" else "tokens"
        return any(other in TERMS[name].features for name in self.weights)

    def reads_swapped_captions(self) -> bool:
        """True if a term needs captions with exchanged words, see filip.train.word_swaps."""
        return any("swapped captions" in TERMS[name].features for name in self.weights)

    def follows_schedule(self) -> bool:
        """True if a weight changes over the run."""
        return any(isinstance(weight, WeightSchedule) for weight in self.weights.values())

    def describe(self) -> str:
        """For the log: ``token_wise + 0.5 x pooled``."""
        return " + ".join(
            f"({weight}) x {name}"
            if isinstance(weight, WeightSchedule)
            else name
            if weight == 1
            else f"{weight:g} x {name}"
            for name, weight in self.weights.items()
        )


def resolve_weights(weights: Mapping[str, object], interaction: str) -> dict[str, Weight]:
    """The terms that count in some step, in the order of :data:`TERMS`, with their weights.

    A weight of None is 1 for the term that the model's ``interaction`` names and 0 for every other.
    Raises UserError for an unknown term, for what is no weight, and if in some step no term has a weight above 0.
    """
    for name in weights:
        if name not in TERMS:
            raise UserError(f"loss.{name}: there is no such term; choose among {', '.join(TERMS)}")
    given = {name: parse_weight(name, weights.get(name)) for name in TERMS}
    resolved = {
        name: float(name == interaction) if weight is None else weight for name, weight in given.items()
    }
    active = {name: weight for name, weight in resolved.items() if weight != 0}
    if not active:
        raise UserError(
            f"every term of the loss has weight 0; give one of {', '.join(TERMS)} a weight above 0"
        )
    check_every_step(active)
    return active


def exchanged(weights: Mapping[str, Weight]) -> set[str]:
    """What ranks send one another: "tokens", "vectors", both or nothing."""
    return {kind for name in weights for kind in TERMS[name].exchanged}


def check_model(weights: Mapping[str, Weight], model: DualEncoder) -> None:
    """UserError if ``model`` cannot give what a term reads, or if no term trains the vectors that it will score by."""
    if model.config.interaction == "pooled" and not any(
        "vectors" in TERMS[name].features for name in weights
    ):
        raise UserError(
            f"loss.{next(iter(weights))} reads tokens, but model.interaction=pooled compares an image and a caption by "
            "one vector each, which no term of this loss reads; set model.interaction=token_wise, or give loss.pooled "
            "or loss.sigmoid a weight"
        )
    for name in weights:
        if "vectors" in TERMS[name].features:
            model.require_vector(f"loss.{name}", f"loss.{name}=0")
