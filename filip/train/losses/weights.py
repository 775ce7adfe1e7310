"""The weight of a term, a number or a schedule over optimiser steps, and the settings that are given with it.

They are together in the configuration: ``loss.my_margin={weight: 1, margin: 0.2}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from filip.cli.option import read_settings
from filip.common.errors import UserError

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
        steps = (
            f"at step {self.first_step}"
            if self.shape == "switch"
            else f"in steps {self.first_step} to {self.last_step}"
        )
        return f"{self.shape} from {self.start:g} to {self.end:g} {steps}"


Weight = float | WeightSchedule


def weight_at(weight: Weight, step: int) -> float:
    """Return the number that ``weight`` is in optimiser step ``step``."""
    return weight.at(step) if isinstance(weight, WeightSchedule) else weight


def parse_weight(name: str, value: object) -> Weight | None:
    """Parse the number or schedule in the key ``name`` of the configuration; None stays None.

    Raises UserError if it is neither one of :data:`FORMS` nor null.
    """
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
            raise UserError(f"every term of the loss has weight 0 in step {step}: {terms}; start one above 0")


WEIGHT = "weight"


def given_weight(name: str, value: object, kind: type | None) -> object:
    """Return the weight in ``loss.<name>``, which is a weight or a mapping of it and the settings ``kind``."""
    if not isinstance(value, Mapping):
        return value
    if kind is None:
        raise UserError(f"loss.{name}={_shown(value)}: this term has no settings; write loss.{name}=WEIGHT")
    if WEIGHT not in value:
        # A setting that is written after loss.NAME=1 takes the place of the number: it must not vanish unseen.
        raise UserError(f"loss.{name}={_shown(value)} has no weight: give loss.{name}.weight as well")
    return value[WEIGHT]


def term_settings(name: str, value: object, kind: type | None) -> Any:
    """Return an instance of ``kind`` with the settings in ``loss.<name>``; None for a term that has none.

    Raises UserError for a setting that ``kind`` does not have, or that does not take the value.
    """
    if kind is None:
        return None
    settings = {key: value[key] for key in value if key != WEIGHT} if isinstance(value, Mapping) else {}
    return read_settings(kind, settings, f"loss.{name}.")


def _shown(value: Mapping[Any, object]) -> str:
    return "{" + ", ".join(f"{key}: {setting}" for key, setting in value.items()) + "}"
