"""The training loss: a weighted sum of named terms, each in a file of its own.

A new term is one file with a :class:`Term` and one line in :data:`TERMS`. Its weight is then ``loss.<name>`` in the
configuration; TensorBoard, log, result, watchdog and memory plan take it from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from filip.errors import UserError
from filip.interaction import gather_ids
from filip.models import DualEncoder, Encoded
from filip.train.losses.pooled import POOLED
from filip.train.losses.term import BatchShape, LossInput, LossSettings, Term, TermOutput
from filip.train.losses.token_wise import TOKEN_WISE

__all__ = [
    "TERMS", "BatchShape", "Loss", "LossInput", "LossOutput", "LossSettings", "Term", "TermOutput", "check_model",
    "resolve_weights",
]  # fmt: skip

# In the order in which they are added up. The first one with a weight names loss/i2t, accuracy/i2t and so on.
TERMS: dict[str, Term] = {
    "token_wise": TOKEN_WISE,
    "pooled": POOLED,
}


class LossOutput(NamedTuple):
    """``loss`` is the weighted sum with its gradient; ``metrics`` are detached, under their TensorBoard names."""

    loss: Tensor
    metrics: dict[str, Tensor]


class Loss:
    """``loss(encoded, group)``: this rank's pairs against those of all ranks; ``group`` [b] int64."""

    def __init__(self, weights: Mapping[str, float], settings: LossSettings) -> None:
        """``weights``: of each term that counts, as :func:`resolve_weights` returns them."""
        self.weights, self.settings = dict(weights), settings

    def __call__(self, encoded: Encoded, group: Tensor) -> LossOutput:
        all_groups, offset = gather_ids(group)
        soft = self.settings.soft_targets
        batch = LossInput(
            encoded, group if soft else None, all_groups if soft else None, offset, self.settings
        )
        outputs = {name: TERMS[name].compute(batch) for name in self.weights}
        total = sum_of([weight * outputs[name].loss for name, weight in self.weights.items()])
        return LossOutput(total, {name: value.detach() for name, value in named(total, outputs).items()})

    def chance(self, pairs: int) -> float:
        """The loss of a model that knows nothing, in a contrastive batch of ``pairs``."""
        return sum(weight * TERMS[name].chance(pairs) for name, weight in self.weights.items())

    def memory(self, shape: BatchShape) -> int:
        """Bytes on one rank, of all terms."""
        return int(sum(TERMS[name].memory(shape) for name in self.weights))

    def reads_vectors(self) -> bool:
        """True if a term needs one vector per image and caption."""
        return any(TERMS[name].features == "vectors" for name in self.weights)

    def describe(self) -> str:
        """For the log: ``token_wise + 0.5 x pooled``."""
        return " + ".join(
            name if weight == 1 else f"{weight:g} x {name}" for name, weight in self.weights.items()
        )


def sum_of(losses: list[Tensor]) -> Tensor:
    """The sum, without a zero to start from."""
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


def named(total: Tensor, outputs: dict[str, TermOutput]) -> dict[str, Tensor]:
    """Metrics of all terms under names of their own.

    The first term's keep their names. With several terms there is also ``loss/<term>`` for each, and the metrics of
    the later ones end in ``_<term>``.
    """
    metrics = {"loss/total": total}
    for position, (term, output) in enumerate(outputs.items()):
        if len(outputs) > 1:
            metrics[f"loss/{term}"] = output.loss
        ending = f"_{term}" if position else ""
        metrics |= {f"{name}{ending}": value for name, value in output.metrics.items()}
    return metrics


def resolve_weights(weights: Mapping[str, float | None], interaction: str) -> dict[str, float]:
    """The terms that count, in the order of :data:`TERMS`, with their weights.

    A weight of None is 1 for the term that the model's ``interaction`` names and 0 for every other.
    Raises UserError if no term has a weight above 0.
    """
    given = {name: weights.get(name) for name in TERMS}
    resolved = {
        name: float(name == interaction) if weight is None else float(weight)
        for name, weight in given.items()
    }
    active = {name: weight for name, weight in resolved.items() if weight}
    if not active:
        raise UserError(
            f"every term of the loss has weight 0; give one of {', '.join(TERMS)} a weight above 0"
        )
    return active


def check_model(weights: Mapping[str, float], model: DualEncoder) -> None:
    """UserError if ``model`` cannot give what a term reads."""
    for name in weights:
        if TERMS[name].features == "tokens" and model.config.interaction == "pooled":
            raise UserError(
                f"loss.{name} reads tokens, but model.interaction=pooled gives one vector per image and caption; "
                f"set loss.{name}=0 or model.interaction=token_wise"
            )
        if TERMS[name].features == "vectors":
            model.require_cls(f"loss.{name}", f"loss.{name}=0")
