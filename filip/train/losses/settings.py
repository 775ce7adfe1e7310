"""The settings of one term, which stand with its weight: ``loss.hard_negatives={weight: 1, margin: 0.2}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from filip.errors import UserError
from filip.option import read_settings

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
    given = {key: value[key] for key in value if key != WEIGHT} if isinstance(value, Mapping) else {}
    return read_settings(kind, given, f"loss.{name}.")


def with_settings(weight: float | str, settings: Any) -> float | str | dict[str, Any]:
    """Return ``weight`` and ``settings`` as they stand in a configuration; :func:`term_settings` reads them back."""
    return weight if settings is None else {WEIGHT: weight, **asdict(settings)}


def _shown(value: Mapping[Any, object]) -> str:
    return "{" + ", ".join(f"{key}: {one}" for key, one in value.items()) + "}"
