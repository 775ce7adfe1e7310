"""Check arguments ``key=value`` against a command's dataclass: each mistake is a sentence that names key and value.

Hydra would find the same mistakes, and speak of its classes. So every argument is checked before Hydra composes them.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from importlib import resources
from types import NoneType, UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from filip.cli.option import in_words
from filip.common.errors import UserError, did_you_mean, nearest, one_of

MOST_LISTED = 24  # options in a message; if there are more, only the near ones
# What options of ours are called elsewhere.
_OTHERS = {
    **dict.fromkeys(("lr", "learning_rate"), "optimizer.base_lr"),
    **dict.fromkeys(("bs", "batch", "batch_size", "train_batch_size"), "global_batch"),
    **dict.fromkeys(("steps", "num_steps", "iterations"), "max_steps"),
    **dict.fromkeys(("warmup", "warmup_steps"), "optimizer.warmup_steps"),
    **dict.fromkeys(("wd", "weight_decay"), "optimizer.weight_decay"),
    **dict.fromkeys(("n", "k", "top_k", "num", "limit"), "count"),
    **dict.fromkeys(("output", "output_dir", "save"), "out"),
    **dict.fromkeys(("weights", "checkpoint", "pretrained"), "model"),
    **dict.fromkeys(("num_workers", "workers"), "data.workers"),
    "gpu": "device",
}


def check_overrides(schema: type, overrides: Sequence[str], groups: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError for the first argument that is no option of ``schema``, or has a value that does not fit it.

    groups: the names of the files behind ``KEY=NAME``, by key (see :func:`config_groups`).
    """
    _refuse_bare(schema, overrides)
    structured = copy.deepcopy(structured_config(schema))
    for override in overrides:
        key, _, value = override.partition("=")
        key = key.lstrip("+~")
        if key.startswith("hydra.") or "@" in key or value.startswith("${"):
            continue  # Hydra's own syntax, or something that can be known only when all is composed
        if key in groups:
            if value in ("", "null") or value.startswith("["):
                continue
            if value not in groups[key]:
                raise UserError(f"{key}={value}: there is no {key} of this name{one_of(value, groups[key])}")
            continue
        if override.startswith("~"):
            _type_of(schema, key, groups)
        elif not (override.startswith("+") and _is_dict(schema, key.rpartition(".")[0])):
            _check_value(schema, structured, key, value, groups)


@lru_cache(maxsize=4096)
def parse(schema: type, override: str) -> Override:
    """Parse an argument with Hydra, once: a study's trainings share most of them. May raise HydraException."""
    return OverridesParser.create().parse_override(quote_text(schema, override))


@cache
def structured_config(schema: type) -> Any:
    """Return OmegaConf's form of a dataclass, not to be changed: a training's takes 0.1 s."""
    return OmegaConf.structured(schema)


def config_groups() -> dict[str, list[str]]:
    """Return the names that ``experiment=`` and ``model=`` take: the YAML files in the folders of ``filip/conf``."""
    folders = [entry for entry in resources.files("filip.conf").iterdir() if entry.is_dir()]
    groups = {
        folder.name: sorted(file.name[: -len(".yaml")] for file in folder.iterdir() if file.name.endswith(".yaml"))
        for folder in folders
    }
    return {name: files for name, files in groups.items() if files}


def _refuse_bare(schema: type, words: Sequence[str]) -> None:
    """Raise UserError for arguments without a key, with the required ones as an example. (``~key`` is Hydra's.)"""
    for argument, following in zip(words, [*words[1:], ""], strict=False):
        dashed = re.fullmatch(r"--?([\w.-]+)(=.*)?", argument, re.DOTALL)
        if dashed:
            value = dashed[2] or (f"={following}" if following and not re.match(r"-|\w*=", following) else "=VALUE")
            name = dashed[1].replace("-", "_")
            near = [] if name in _keys(schema) else nearest(name, _keys(schema))
            hint = f"; did you mean {near[0]}{value}?" if near else ""
            raise UserError(f"{argument}: options are written without dashes, {name}{value}{hint} (see --help)")
        if argument.startswith("="):
            raise UserError(f"{argument!r} has no key: every argument is key=value (see --help)")
    bare = [a for a in words if "=" not in a and not a.startswith("~")]
    if not bare:
        return
    named = {a.partition("=")[0] for a in words if "=" in a}
    required = [field.name for field in options_of(schema) if field.default == MISSING and field.name not in named]
    meant = " ".join(shlex.quote(f"{key}={value}") for key, value in zip(required, bare, strict=False))
    example = f", e.g. {meant}" if meant else ""
    raise UserError(f"{bare[0]!r} has no key: every argument is key=value{example} (see --help)")


def _check_value(schema: type, structured: Any, key: str, value: str, groups: Iterable[str]) -> None:
    declared, optional = _type_of(schema, key, groups)
    rule = f"{key} takes {in_words(declared, key)}{', or null' if optional else ''}"
    try:
        parsed = parse(schema, f"{key}={value}")
    except HydraException as error:
        raise UserError(f"{key}={value}: the value cannot be read; {rule} (see --help)") from error
    if parsed.is_sweep_override():
        several = f"; write {key}=[{value}]" if get_origin(declared) in (list, tuple) else ""
        raise UserError(f"{key}={value}: these are several values, and {rule}{several}")
    result = parsed.value()
    length = len(get_args(declared)) if get_origin(declared) is tuple else 0
    try:
        if length and isinstance(result, list) and len(result) != length:
            raise OmegaConfBaseException("of another length")
        OmegaConf.update(structured, key, result)
    except OmegaConfBaseException as error:
        raise UserError(f"{key}={value}: {_inner(schema, key, error) or rule} (see --help)") from error


def _inner(schema: type, key: str, error: OmegaConfBaseException) -> str:
    """Name the unknown field of a record inside a value, e.g. of one source in a list; "" for another mistake."""
    if not isinstance(error, ConfigKeyError) or not dataclasses.is_dataclass(error.object_type):
        return ""
    names = [field.name for field in options_of(cast(type, error.object_type))]
    return f"there is no {error.key}{one_of(str(error.key), names)}"


def _type_of(schema: type, key: str, groups: Iterable[str]) -> tuple[Any, bool]:
    """Return the type of a dotted key without ``| None``, and whether None fits. UserError for an unknown key."""
    declared = _declared(schema, key)
    if declared is not None:
        return declared
    inside = [name for name in _keys(schema) if name.rpartition(".")[2] == key or name == _OTHERS.get(key)]
    if inside:
        raise UserError(f"there is no option {key!r}; did you mean {inside[0]!r}? (see --help)")
    place, name, names = _level(schema, key)
    if not names:
        raise UserError(f"{key}: {place} has no options inside it (see --help)")
    hint = one_of(name, names) if len(names) <= MOST_LISTED else did_you_mean(name, [*names, *groups])
    raise UserError(f"there is no option {name!r}{f' in {place}' if place else ''}{hint} (see --help)")


def _level(schema: type, key: str, place: str = "") -> tuple[str, str, list[str]]:
    """Return the place of the first unknown part of a key, that part, and the names that are known there."""
    name, _, rest = key.partition(".")
    field = next((field for field in options_of(schema) if field.name == name), None)
    if field is None or not rest:
        return place, name, [field.name for field in options_of(schema)]
    declared, inner = (_declared(schema, name) or (None,))[0], f"{place}.{name}".lstrip(".")
    if dataclasses.is_dataclass(declared):
        return _level(cast(type, declared), rest, inner)
    return inner, rest.partition(".")[0], list(_default(field)) if get_origin(declared) is dict else []


def _declared(schema: type, key: str) -> tuple[Any, bool] | None:
    """Return the type of a dotted key without ``| None``, and whether None fits; None for a key that is not there."""
    name, _, rest = key.partition(".")
    field = next((field for field in options_of(schema) if field.name == name), None)
    if field is None:
        return None
    declared, optional = _types(schema)[name], False
    if get_origin(declared) in (Union, UnionType):
        alternatives = [a for a in get_args(declared) if a is not NoneType]
        optional = NoneType in get_args(declared)
        declared = alternatives[0] if len(alternatives) == 1 else Any
    if not rest:
        return declared, optional
    if dataclasses.is_dataclass(declared):
        return _declared(cast(type, declared), rest)
    if get_origin(declared) is dict:
        default = _default(field)
        return (Any, True) if not default or rest.partition(".")[0] in default else None
    return (Any, True) if get_origin(declared) is list else None


@cache
def _types(schema: type) -> dict[str, Any]:
    """Return the types of a schema's fields, which Python evaluates from their text each time that it is asked."""
    return get_type_hints(schema)


def _default(field: dataclasses.Field[Any]) -> dict[str, Any]:
    """Return the default of a dict."""
    value: dict[str, Any] = {} if field.default_factory is dataclasses.MISSING else field.default_factory()
    return value


def options_of(schema: type) -> list[dataclasses.Field[Any]]:
    """Return the fields of a command's dataclass that can be given on its command line."""
    return [field for field in dataclasses.fields(cast(Any, schema)) if field.metadata.get("typed", True)]


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    """Yield all keys of a schema, dotted."""
    for field in options_of(schema):
        yield f"{prefix}{field.name}"
        declared = _declared(schema, field.name)
        if declared and dataclasses.is_dataclass(declared[0]):
            yield from _keys(cast(type, declared[0]), f"{prefix}{field.name}.")


# ---- text as it was typed --------------------------------------------------------------------------------


def quote_text(schema: type, override: str) -> str:
    """Quote ``key=value`` for Hydra, which would otherwise read a comma, an apostrophe or ``=`` in a text as syntax.

    The value of a field of type ``str``, and each element of a ``list[str]``, is quoted; a list of one element may come
    without its brackets. New names may be written into a dict, for which Hydra wants ``++``. Left as they are:
    ``null``, values in Hydra's own quotes (in which an interpolation such as ``${run_dir}`` works), all other types.
    """
    key, equals, value = override.partition("=")
    names = key.lstrip("+").split(".")
    if equals and any(_is_dict(schema, ".".join(names[:length])) for length in range(1, len(names) + 1)):
        return f"++{key.lstrip('+')}={value}"
    declared = (_declared(schema, key.lstrip("+")) or (None,))[0] if equals else None
    if declared is str:
        return f"{key}={_quoted(value)}"
    if declared == list[str] and value.strip() and not value.strip().startswith(("[", "$", "null")):
        return f"{key}=[{_quoted(value)}]"  # one element needs no brackets
    if declared == list[str] and value.strip().startswith("[") and value.strip().endswith("]"):
        # split at commas outside quotes, where a quote only ever opens a whole element; the last match is the empty end
        elements = [match[1] for match in re.finditer(_ELEMENT, value.strip()[1:-1], re.DOTALL)][:-1]
        return f"{key}=[{','.join(_quoted(element.strip()) for element in elements)}]"
    return override


def _is_dict(schema: type, key: str) -> bool:
    """Return whether a key is a dict, to which ``+`` adds a name that its reader may know, as a loss term's."""
    declared = _declared(schema, key)
    return declared is not None and get_origin(declared[0]) is dict


def _quoted(value: str) -> str:
    if value.strip().lower() == "null" or re.fullmatch(_IN_QUOTES, value.strip(), re.DOTALL):
        return value
    # OmegaConf would read ${...} as an interpolation; \${...} is the text, and a backslash before it counts double.
    literal = re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)
    return QuotedString(literal, Quote.single).with_quotes()


_IN_QUOTES = r"'(?:\\.|[^'\\])*'" + "|" + r'"(?:\\.|[^"\\])*"'
_ELEMENT = rf"\s*((?:{_IN_QUOTES})(?=\s*(?:,|$))|[^,]*?)\s*(?:,|$)"
