"""The interface of a loss term: its input, its output, the facts that others ask of it, and its weight.

A new term is one file in this folder and a line in ``TERMS`` (__init__.py).
A weight is a number or a schedule over optimiser steps; settings are given with it:
``loss.my_margin={weight: 1, margin: 0.2}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor

from filip.cli.option import read_settings
from filip.common.errors import UserError
from filip.models import Encoded, ModelConfig, PooledFeatures, TextFeatures
from filip.models.dual_encoder import without_ends
from filip.train.losses.auto_backend import AutoBackend
from late_interaction import ContrastiveOutput, Similarity, contrastive_loss

FORMS = (
    "a number, 'linear from A to B in steps F to L', 'cosine from A to B in steps F to L' or "
    "'switch from A to B at step F'"
)
_SCHEDULE = re.compile(
    r"(?P<shape>linear|cosine|switch) from (?P<start>\S+) to (?P<end>\S+) "
    r"(in steps (?P<first>\d+) to (?P<last>\d+)|at step (?P<at>\d+))"
)


@dataclass(frozen=True)
class WeightSchedule:
    """A weight that is ``start`` up to ``first_step``, ``end`` from ``last_step`` on, and ``shape`` between them.

    Steps are optimiser steps, and the first of a run is 0. ``linear`` is a straight line, ``cosine`` half a period,
    flat at both ends; ``switch`` has no steps between (``last_step`` is ``first_step``), which has ``end`` already.
    """

    shape: str
    start: float
    end: float
    first_step: int
    last_step: int

    def at(self, step: int) -> float:
        """Return the weight in optimiser step ``step``."""
        if step >= self.last_step:
            return self.end
        progress = max(0, step - self.first_step) / (self.last_step - self.first_step or 1)
        if self.shape == "cosine":
            progress = 0.5 * (1 - math.cos(math.pi * progress))
        return self.start + (self.end - self.start) * progress

    def __str__(self) -> str:
        last = f"in steps {self.first_step} to {self.last_step}"
        when = f"at step {self.first_step}" if self.shape == "switch" else last
        return f"{self.shape} from {self.start:g} to {self.end:g} {when}"


Weight = float | WeightSchedule


def weight_at(weight: Weight, step: int) -> float:
    """Return the number that ``weight`` is in optimiser step ``step``."""
    return weight.at(step) if isinstance(weight, WeightSchedule) else weight


def parse_weight(name: str, value: object) -> Weight | None:
    """Parse the number or schedule in a configuration's key ``name``; None stays None. Raise UserError for others."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(name, value, value)
    if not isinstance(value, str) or (match := _SCHEDULE.fullmatch(" ".join(value.split()))) is None:
        raise UserError(f"{name}={value!r} is neither a number nor a schedule; write {FORMS}")
    start, end = (_number(name, match[key], value) for key in ("start", "end"))
    if (match["shape"] == "switch") != (match["at"] is not None):
        raise UserError(f"{name}={value!r}: a switch has one step, the others a first and a last; write {FORMS}")
    first = int(match["first"] or match["at"])
    last = int(match["last"] or first)
    if match["shape"] != "switch" and last <= first:
        raise UserError(f"{name}={value!r} ends in step {last}, which must come after step {first}")
    return WeightSchedule(match["shape"], start, end, first, last)


def _number(name: str, text: object, value: object) -> float:
    try:
        number = float(str(text))
    except ValueError:
        raise UserError(f"{name}={value!r}: {text!r} is not a number") from None
    if not (math.isfinite(number) and number >= 0):
        raise UserError(f"{name}={value!r} must be 0 or positive")
    return number


def check_every_step(weights: Mapping[str, Weight]) -> None:
    """Raise UserError if there is a step in which all ``weights`` are 0."""
    schedules = [weight for weight in weights.values() if isinstance(weight, WeightSchedule)]
    # Between its first and its last step a weight is 0 only if both its ends are.
    edges = {edge for schedule in schedules for edge in (schedule.first_step, schedule.last_step)}
    steps = {0, *(edge + near for edge in edges for near in (-1, 0, 1))}
    for step in sorted(step for step in steps if step >= 0):
        if not any(weight_at(weight, step) for weight in weights.values()):
            terms = ", ".join(f"loss.{name}={weight!s}" for name, weight in weights.items())
            raise UserError(f"all terms of the loss have weight 0 in step {step}: {terms}; keep one above 0")


WEIGHT = "weight"


def given_weight(name: str, value: object, kind: type | None) -> Weight | None:
    """Return the weight in ``loss.<name>``, which is a weight or a mapping of it and the settings ``kind``."""
    if not isinstance(value, Mapping):
        return parse_weight(f"loss.{name}", value)
    shown = "{" + ", ".join(f"{key}: {setting}" for key, setting in value.items()) + "}"
    if kind is None:
        raise UserError(f"loss.{name}={shown}: this term has no settings; write loss.{name}=WEIGHT")
    if WEIGHT not in value:
        # A setting that is written after loss.NAME=1 takes the place of the number: it must not vanish unseen.
        raise UserError(f"loss.{name}={shown} has no weight: give loss.{name}.weight as well")
    return parse_weight(f"loss.{name}", value[WEIGHT])


def term_settings(name: str, value: object, kind: type | None) -> Any:
    """Return an instance of ``kind`` with the settings in ``loss.<name>``; None for a term that has none.

    Raises UserError for a setting that ``kind`` does not have, or that does not take the value.
    """
    if kind is None:
        return None
    settings = {key: value[key] for key in value if key != WEIGHT} if isinstance(value, Mapping) else {}
    return read_settings(kind, settings, f"loss.{name}.")


T = TypeVar("T")


class LossSettings(Protocol):
    """The fields of the training configuration that terms read."""

    precision: str
    transport_dtype: str
    token_keep_ratio: float
    token_keep_schedule: str | None
    token_score: str
    token_keep_minimum: int
    exchange: str
    backend: str
    recompute: bool
    soft_targets: bool
    label_smoothing: float
    token_maximum: str
    token_temperature: Any  # a number or a schedule
    loss: dict[str, Any]
    model: ModelConfig


@dataclass(frozen=True)
class LossInput:
    """One contrastive batch as this rank sees it."""

    encoded: Encoded
    # [b] int64: own pairs of one id are positives of each other; None: only the own pair
    positives: Tensor | None
    all_positives: Tensor | None  # [N] int64, of all ranks
    offset: int  # position of this rank's first pair among the N
    settings: LossSettings
    step: int = 0  # optimiser steps before this one
    captions: tuple[Tensor, Tensor] | None = None  # ids [b, n] int64, padded after [EOS], and lengths [b]
    own: Any = None  # the settings of the term that computes, an instance of its Term.settings
    shared: dict[str, Any] = field(default_factory=dict)
    auto: AutoBackend = field(default_factory=AutoBackend)  # what backend=auto is in this training

    def once(self, name: str, compute: Callable[[LossInput], T]) -> T:
        """Return ``compute(self)``, computed at its first use; later calls with the same ``name`` get that result."""
        if name not in self.shared:
            self.shared[name] = compute(self)
        value: T = self.shared[name]
        return value

    @property
    def keep_ratio(self) -> float:
        """Return the share of its tokens that a sample sends to the loss in this step."""
        schedule = parse_weight("token_keep_schedule", self.settings.token_keep_schedule)
        return self.settings.token_keep_ratio if schedule is None else weight_at(schedule, self.step)

    @property
    def token_temperature(self) -> float:
        """Return the temperature of the smooth maximum in this step; 0 is the maximum itself."""
        return weight_at(parse_weight("token_temperature", self.settings.token_temperature) or 0.0, self.step)

    @property
    def tokens(self) -> tuple[Tensor, TextFeatures]:
        """Return the unit tokens of the images [b, n1, d] and of the captions, packed, as far as they take part."""
        text = self.encoded.text
        assert isinstance(text, TextFeatures)
        return self.encoded.image, without_ends(text) if self.settings.model.exclude_special_tokens else text

    @property
    def vectors(self) -> PooledFeatures:
        """Return one unit vector per image and per caption, each [b, d]."""
        if self.encoded.pooled is not None:
            return self.encoded.pooled
        assert isinstance(self.encoded.text, Tensor)
        return PooledFeatures(self.encoded.image, self.encoded.text)

    def cross_entropy(self, similarity: Similarity) -> TermOutput:
        """Compute CLIP's symmetric cross-entropy over ``similarity``; both halves and both accuracies are metrics."""
        output: ContrastiveOutput = contrastive_loss(
            similarity,
            self.encoded.logit_scale,
            offset=self.offset,
            ids=self.positives,
            all_ids=self.all_positives,
            label_smoothing=self.settings.label_smoothing,
        )
        metrics = {
            "loss/i2t": output.i2t_loss,
            "loss/t2i": output.t2i_loss,
            "accuracy/i2t": output.i2t_accuracy,
            "accuracy/t2i": output.t2i_accuracy,
        }
        return TermOutput(output.loss, metrics)


class TermOutput(NamedTuple):
    """The value of a term, or of their weighted sum."""

    loss: Tensor  # a scalar with its gradient
    metrics: dict[str, Tensor]  # scalars under their TensorBoard names


# Of a pair of an own image and a text: s^I, s^T and, measured, the 6.4 float32 matrices of the soft-max with ids at its
# peak, their gradients among them (4.2 without ids)
SOFTMAX_BYTES = 34


@dataclass(frozen=True)
class BatchShape:
    """Sizes that decide how much memory a term needs on one rank."""

    pairs: int  # on this rank
    all_pairs: int  # of the contrastive batch, on all ranks
    patches: int  # tokens of an image ...
    words: int  # ... and of a typical caption
    kept_patches: int  # of them in the interaction, after token selection
    kept_words: int
    dim: int  # channels of an embedding
    exchange: str
    token_bytes: int = 2  # of a channel when it is sent
    saved_bytes: float = 1  # of a token of an image with a text, and the reverse, that a backend keeps for the backward


@dataclass(frozen=True)
class Term:
    """One summand of the loss.

    compute    this rank's share: the mean over ranks is the loss of one process that holds the whole batch
    features   its input: "tokens", "vectors" or "tokens and vectors"
    memory     bytes of embeddings, their gradients and whatever the term allocates, on one rank
    about      for the log
    settings   a dataclass of filip.cli.option.option fields, one for each setting of the term. They are given with its
               weight, ``loss.NAME={weight: 1, SETTING: VALUE}``, and ``compute`` reads them from ``batch.own``
    check      raises UserError for a training configuration under which the term would be wrong
    captions   further captions, one or none for each pair, which the text tower encodes with the batch: from
               the loader's batch and a key that decides every random choice, ids [b, n] and lengths [b], 0 for none.
               ``compute`` finds their tokens in ``batch.encoded.further``. One term of a loss may have them
    clip_words whether it reads or makes ids of CLIP's vocabulary
    citation   the papers that it comes from, for the cards of models that it trained
    """

    compute: Callable[[LossInput], TermOutput]
    features: str
    memory: Callable[[BatchShape], float]
    about: str
    settings: type | None = None
    check: Callable[[LossSettings], None] = lambda settings: None
    captions: Callable[[Mapping[str, Any], str], tuple[Tensor, Tensor]] | None = None
    clip_words: bool = False
    citation: tuple[str, ...] = ()
