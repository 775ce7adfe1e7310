"""Declare the settings of a command or a card, with their ranges and choices, and check values against them."""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from filip.common.errors import UserError, did_you_mean, one_of

T = TypeVar("T")
_LIMITS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le}

_WORDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_EXAMPLES: dict[Any, str] = {bool: "true,false", int: "1,2", float: "0.1,0.2", str: "a,b"}


def option(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    choices: Collection[Any] | Callable[[], Collection[Any]] = (),
    writes: str | None = None,
    typed: bool = True,
    may_be_empty: bool = False,
) -> Any:
    """Return a dataclass field with its default and the sentence that ``--help`` prints for it.

    at_least, above, at_most: the range of its numbers. choices: the values that it takes, or a function that returns
    them.
    writes: "file" or "folder", if the command writes there, which is then checked before it starts;
    "store" is a folder with files that would make a folder of pictures something else.
    typed: whether it is an option of the command line; others are set by files and converters alone. may_be_empty: a
    list that has to be given, and may be [].
    """
    limits = {"at_least": at_least, "above": above, "at_most": at_most}
    metadata = {"help": help, "choices": choices, "writes": writes, "typed": typed, "empty": may_be_empty, **limits}
    if isinstance(default, list | dict) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _choices(field: dataclasses.Field[Any]) -> Collection[Any]:
    choices = field.metadata.get("choices", ())
    return cast(Collection[Any], choices() if callable(choices) else choices)


def range_of(field: dataclasses.Field[Any]) -> str:
    """Describe the values that an option takes, e.g. ``above 0 and at most 1``; "" if any value of its type will do."""
    if choices := _choices(field):
        return f"one of {', '.join(map(str, choices))}"
    limits = {name: field.metadata.get(name) for name in _LIMITS}
    return " and ".join(f"{name.replace('_', ' ')} {limit}" for name, limit in limits.items() if limit is not None)


def check_values(settings: Any, prefix: str = "") -> None:
    """Raise UserError for a value that its option does not take: out of its range, not one of its choices, or empty.

    settings: an instance of a dataclass; its records and lists of records are checked as well. prefix: put before the
    names in the message.
    """
    for field in dataclasses.fields(settings):
        name, value = f"{prefix}{field.name}", getattr(settings, field.name)
        required, several = field.default == MISSING, isinstance(value, list)
        blank = any(isinstance(v, str) and not v.strip() for v in (value if several else [value]))
        if required and blank and not several:
            raise UserError(f"{name}={value} is empty: give a value (see --help)")
        if required and several and (blank or not (value or field.metadata.get("empty"))):
            what = "an element" if value else "the list"
            raise UserError(f"{name}=[{','.join(map(str, value))}]: {what} is empty; give at least one value")
        for number, element in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if dataclasses.is_dataclass(element):
                check_values(element, f"{name}." if number is None else f"{name}[{number}].")
            else:
                _check_value(name, field, element)


def check_given(schema: type, values: Mapping[str, Any], prefix: str) -> None:
    """Raise UserError for one of ``values`` that the option of its name in the dataclass ``schema`` does not take."""
    for field in dataclasses.fields(cast(Any, schema)):
        if field.name in values:
            _check_value(f"{prefix}{field.name}", field, values[field.name])


def _check_value(name: str, field: dataclasses.Field[Any], value: Any) -> None:
    choices, takes = _choices(field), range_of(field)
    if choices and value is not None and value not in choices:
        raise UserError(f"{name}={value} must be {takes}{did_you_mean(str(value), map(str, choices))}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if not math.isfinite(value):
        raise UserError(f"{name}={value} must be a finite number{takes and f', {takes}'}")
    for limit, holds in _LIMITS.items():
        bound = field.metadata.get(limit)
        if bound is not None and not holds(value, bound):
            raise UserError(f"{name}={value} must be {takes}")


def read_settings(schema: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Return an instance of the dataclass ``schema`` with plain ``values``, e.g. of a YAML or JSON file.

    prefix: put before the names of keys in messages. Raises UserError for an unknown key, for a value of another type
    and for one that its option does not take.
    """
    settings = OmegaConf.to_object(_filled(schema, values, prefix))
    check_values(settings, prefix)
    return cast(T, settings)


def _filled(schema: type, values: Mapping[str, Any], prefix: str) -> Any:
    """Return OmegaConf's form of a dataclass with ``values``. UserError for one that does not fit or is missing."""
    types, structured = get_type_hints(schema), OmegaConf.structured(schema)
    OmegaConf.set_readonly(structured, False)  # a frozen dataclass is read-only
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in types:
            place = f" in {prefix.rstrip('.')}" if prefix else ""
            raise UserError(f"there is no key {key!r}{place}{one_of(str(key), types)}")
        alternatives = get_args(types[key]) if NoneType in get_args(types[key]) else (types[key],)
        if "${" in str(value):  # OmegaConf would resolve it: a file of somebody else must not ask for ${oc.env:TOKEN}
            raise UserError(f"{name}={value}: ${{…}} is not resolved in this file; write the value itself")
        if dataclasses.is_dataclass(alternatives[0]) and isinstance(value, Mapping):
            structured[key] = _filled(cast(type, alternatives[0]), value, f"{name}.")
            continue
        try:
            structured[key] = value
        except OmegaConfBaseException as error:
            takes = in_words(alternatives[0], key) + (", or null" if len(alternatives) > 1 else "")
            raise UserError(f"{name}={value}: {key} takes {takes}") from error
    if missing := OmegaConf.missing_keys(structured):
        raise UserError(f"the key {prefix + min(missing)!r} is missing")
    return structured


def in_words(declared: Any, key: str) -> str:
    """Describe the values of a type for a message about the option ``key``."""
    if declared in _WORDS:
        return _WORDS[declared]
    if dataclasses.is_dataclass(declared):
        first = dataclasses.fields(declared)[0].name
        return f"options inside it, e.g. {key}.{first}=VALUE"
    if isinstance(declared, type) and issubclass(declared, Enum):
        return f"one of {', '.join(member.name for member in declared)}"
    arguments = get_args(declared)
    if get_origin(declared) is list:
        if dataclasses.is_dataclass(arguments[0]):
            names = ", ".join(f"{field.name}: …" for field in dataclasses.fields(arguments[0])[:2])
            return f"a list such as [{{{names}}}]"
        return f"a list such as [{_EXAMPLES.get(arguments[0], '…')}]"
    if get_origin(declared) is tuple:
        return f"{len(arguments)} values in brackets, such as [{_EXAMPLES.get(arguments[0], '…')}]"
    if get_origin(declared) is dict:
        return f"names with values, e.g. {key}.NAME=VALUE"
    return "another value"
