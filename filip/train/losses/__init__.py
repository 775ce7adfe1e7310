"""The training loss: a weighted sum of named terms, each in its own file.

A new term is one file with a :class:`Term` and one line in :data:`TERMS`. Its weight is then ``loss.<name>`` in the
configuration; TensorBoard, log, result, watchdog and memory plan take it from here. A term of another package is found
by its entry point in the group ``filip.losses``, which filip.train.config asks for; the package filip_research has
examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from filip.common.errors import UserError
from filip.models import DualEncoder, Encoded
from filip.train.losses.auto_backend import AutoBackend
from filip.train.losses.similarity import POOLED, TOKEN_WISE
from filip.train.losses.term import (
    WEIGHT,
    LossInput,
    LossSettings,
    Term,
    TermOutput,
    Weight,
    WeightSchedule,
    check_every_step,
    given_weight,
    term_settings,
    weight_at,
)
from late_interaction import gather_ids

SATURATED_LOSS = 1e-3  # below it a batch teaches next to nothing (HN-CLIP, 2026)
# Terms are added up in this order. The first one that counts names loss/i2t, accuracy/i2t and so on.
TERMS: dict[str, Term] = {"token_wise": TOKEN_WISE, "pooled": POOLED}


class Loss:
    """The weighted sum of terms. ``loss(encoded, group, step)`` compares this rank's pairs with all ranks' pairs.

    ``group``: [b] int64. ``captions``: ids [b, n] and lengths [b], for terms that read the words themselves.
    """

    def __init__(self, weights: Mapping[str, Weight], settings: LossSettings) -> None:
        """Build the terms. ``weights``: of all terms that count, as :func:`resolve_weights` returns them."""
        self.weights, self.settings, self.auto = dict(weights), settings, AutoBackend()
        self.own = {name: term_settings(name, settings.loss.get(name), TERMS[name].settings) for name in self.weights}
        makers = [name for name in self.weights if TERMS[name].captions is not None]
        if len(makers) > 1:
            raise UserError(
                f"loss.{makers[0]} and loss.{makers[1]} both make further captions, and the text tower encodes those "
                f"of one term only; set loss.{makers[1]}=0"
            )
        # of the term that makes captions which the text tower encodes with the batch
        self.captions = TERMS[makers[0]].captions if makers else None

    def weights_at(self, step: int) -> dict[str, float]:
        """Return the weights of the terms that count in optimiser step ``step``, the first being 0."""
        weights = {name: weight_at(weight, step) for name, weight in self.weights.items()}
        return {name: weight for name, weight in weights.items() if weight}

    def __call__(
        self, encoded: Encoded, group: Tensor, step: int = 0, captions: tuple[Tensor, Tensor] | None = None
    ) -> TermOutput:
        all_groups, offset = gather_ids(group)
        own, everybody = (group, all_groups) if self.settings.soft_targets else (None, None)
        batch = LossInput(encoded, own, everybody, offset, self.settings, step, captions, auto=self.auto)
        weights = self.weights_at(step)
        outputs = {name: TERMS[name].compute(replace(batch, own=self.own[name])) for name in weights}
        losses = [weight * outputs[name].loss for name, weight in weights.items()]
        total = sum(losses[1:], losses[0])  # without a zero to start from, so that one loss alone keeps its bits
        # a gradient, also in the steps in which their term does not count: DDP waits for that of every parameter
        for value in encoded.pooled or ():
            total = total + 0 * value.sum()
        saturated = (total.detach() < SATURATED_LOSS).float()
        metrics = {"loss/total": total, "monitor/saturated_share": saturated} | self._named(outputs)
        return TermOutput(total, {name: value.detach() for name, value in metrics.items()})

    def _named(self, outputs: dict[str, TermOutput]) -> dict[str, Tensor]:
        """Return the metrics of all terms, each under a separate name, the same in every step.

        The metrics of the first term keep their names. With several terms there is also ``loss/<term>`` for each, and
        the metrics of the later ones end in ``_<term>``.
        """
        metrics, first = {}, next(iter(self.weights))
        for term, output in outputs.items():
            if len(self.weights) > 1:
                metrics[f"loss/{term}"] = output.loss
            ending = "" if term == first else f"_{term}"
            metrics |= {f"{name}{ending}": value for name, value in output.metrics.items()}
        return metrics

    def with_further_captions(self, batch: dict[str, Any], key: str) -> dict[str, Any]:
        """Return ``batch``, with ``further_ids`` [b, n] and ``further_lengths`` [b] if a term makes such captions."""
        if self.captions is None:
            return batch
        ids, lengths = self.captions(batch, key)
        return {**batch, "further_ids": ids, "further_lengths": lengths}

    def describe(self) -> str:
        """Describe the loss for the log: ``token_wise + 0.5 x pooled``."""
        summands = []
        for name, weight in self.weights.items():
            factor = f"({weight})" if isinstance(weight, WeightSchedule) else f"{weight:g}"
            summands.append(name if weight == 1 else f"{factor} x {name}")
        return " + ".join(summands)


def resolve_weights(weights: Mapping[str, object], interaction: str) -> dict[str, Weight]:
    """Return the terms that count in some step, in the order of :data:`TERMS`, with their weights.

    A weight of None is 1 for the term that the model's ``interaction`` names and 0 for every other.
    Raises UserError for an unknown term, for an invalid weight, and if in some step no term has a weight above 0.
    """
    for name in weights:
        if name not in TERMS:
            raise UserError(f"loss.{name}: there is no such term; choose among {', '.join(TERMS)}")
    stated = {name: given_weight(name, weights.get(name), term.settings) for name, term in TERMS.items()}
    resolved = {name: float(name == interaction) if weight is None else weight for name, weight in stated.items()}
    active = {name: weight for name, weight in resolved.items() if weight != 0}
    if not active:
        raise UserError(f"every term of the loss has weight 0; give one of {', '.join(TERMS)} a weight above 0")
    check_every_step(active)
    return active


def resolved_settings(config: LossSettings, weights: Mapping[str, Weight]) -> dict[str, Any]:
    """Return ``loss`` of a configuration with every weight and setting in it, none left to a default."""
    resolved: dict[str, Any] = {}
    for name, term in TERMS.items():
        weight = weights.get(name, 0.0)
        resolved[name] = str(weight) if isinstance(weight, WeightSchedule) else weight
        if name in weights and term.settings is not None:
            settings = asdict(term_settings(name, config.loss.get(name), term.settings))
            resolved[name] = {WEIGHT: resolved[name], **settings}
    return resolved


def check_terms(config: LossSettings) -> None:
    """Raise UserError if a weighted term cannot work under ``config``, or has a setting that it does not take."""
    for name, value in config.loss.items():
        if name not in TERMS:
            continue  # resolve_weights names the others
        term_settings(name, value, TERMS[name].settings)
        if given_weight(name, value, TERMS[name].settings):
            TERMS[name].check(config)


def check_model(weights: Mapping[str, Weight], model: DualEncoder) -> None:
    """Raise UserError if ``model`` lacks features that a term reads, or if no term trains the vectors that score."""
    if model.config.interaction == "pooled" and not any("vectors" in TERMS[name].features for name in weights):
        raise UserError(
            f"loss.{next(iter(weights))} reads tokens, but model.interaction=pooled compares an image and a caption by "
            "one vector each, which no term of this loss reads; set model.interaction=token_wise, or give a term "
            "of vectors a weight, such as loss.pooled"
        )
    for name in weights:
        if TERMS[name].clip_words and model.config.text.tokenizer is not None:
            raise UserError(
                f"loss.{name} reads the words of captions by CLIP's vocabulary, and model.text.tokenizer="
                f"{model.config.text.tokenizer} has another; give loss.{name}=0"
            )
        if "vectors" in TERMS[name].features:
            model.require_vector(f"loss.{name}", f"loss.{name}=0")
