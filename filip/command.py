"""Turn a function of one config dataclass into a command configured by Hydra overrides.

    @dataclass
    class TextRules:
        list: str = option(MISSING, "Parquet file with the columns url and caption")
        min_words: int = option(1, "captions with fewer words are dropped")

    def main(config: TextRules) -> None: ...

    if __name__ == "__main__":
        run_command(main, TextRules)

Then ``filip data text_rules list=a.parquet min_words=2`` works, and ``--help`` lists every field. A field that is
declared ``str`` takes its value word for word: ``caption="a man's dog, café!"`` needs no quotes beyond the shell's.
Hydra's compose API is used rather than ``@hydra.main``: a command has no need of a dated output folder, and
launchers append ``--local_rank``, which ``@hydra.main`` rejects.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import inspect
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast, get_args, get_type_hints

from hydra import compose, initialize, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from filip.errors import UserError
from filip.extras import missing_extra

# Nothing is wrong with the program or the data, and the sentence says all that a person needs.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
T = TypeVar("T")
__all__ = ["MISSING", "compose_config", "option", "run_command"]


def option(default: Any, help: str) -> Any:
    """A config field with its default and the sentence that ``--help`` prints for it."""
    if isinstance(default, list | dict) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: default, metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def compose_config(schema: type[T], overrides: Sequence[str], config_name: str | None = None) -> T:
    """Compose ``filip/conf/<config_name>.yaml`` (if any) with ``overrides`` and check it against ``schema``.

    The file's defaults list may start with ``<config_name>_schema``, the defaults of ``schema``. What launchers append
    (``--local_rank``) is ignored. Returns an instance of the dataclass ``schema``. Raises UserError for an unknown
    key, a value of the wrong type or a required field (``MISSING``) that is not set.
    """
    given = [a for a in overrides if not a.startswith(("--local_rank", "--local-rank"))]
    _refuse_bare(schema, given)
    quoted = [quote_text(schema, override) for override in given]
    GlobalHydra.instance().clear()
    try:
        # A command without a config file must not see filip/conf: its folders are groups, and `model=PATH` would
        # then ask for the group `model`.
        found = (
            initialize(config_path=None, version_base="1.3")
            if config_name is None
            else initialize_config_module("filip.conf", version_base="1.3")
        )
        with found:
            if config_name is None:
                ConfigStore.instance().store(name=f"schema_{schema.__name__}", node=schema)
                composed = compose(f"schema_{schema.__name__}", overrides=quoted)
            else:
                ConfigStore.instance().store(name=f"{config_name}_schema", node=schema)
                composed = compose(config_name, overrides=quoted)
        # Merged as plain values, which the schema checks: Hydra's `+key=value` would add a key that it does not have.
        config = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.to_container(composed))
        assert isinstance(config, DictConfig)
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise UserError(
                f"required but not given: {', '.join(missing)}; add e.g. {missing[0]}=VALUE (see --help)"
            )
        return cast(T, OmegaConf.to_object(config))
    except (HydraException, OmegaConfBaseException) as error:
        _explain_renamed(error, getattr(schema, "RENAMED", {}))
        raise UserError(
            f"bad configuration: {_reason(error)}{_suggestion(schema, given)} "
            f"(given: {' '.join(given) or 'nothing'}; see --help)"
        ) from error


def _refuse_bare(schema: type, given: Sequence[str]) -> None:
    """UserError for arguments without a key, and those that are required for an example. (``~key`` is Hydra's.)"""
    bare = [a for a in given if "=" not in a and not a.startswith("~")]
    if not bare:
        return
    named = {a.partition("=")[0] for a in given if "=" in a}
    fields = dataclasses.fields(cast(Any, schema))
    required = [field.name for field in fields if field.default == MISSING and field.name not in named]
    meant = " ".join(shlex.quote(f"{key}={value}") for key, value in zip(required, bare, strict=False))
    example = f", e.g. {meant}" if meant else ""
    raise UserError(f"{bare[0]!r} has no key: every argument is key=value{example} (see --help)")


def quote_text(schema: type, override: str) -> str:
    """``key=value`` for Hydra, whose grammar would read a comma, an apostrophe or ``=`` in a text as syntax.

    The value of a field of type ``str``, and each element of a ``list[str]``, is quoted; a list of one element may come
    without its brackets. Left as they are: ``null``,
    values in Hydra's own quotes (in which an interpolation such as ``${run_dir}`` works), and every other type.
    """
    key, equals, value = override.partition("=")
    declared = _declared_type(schema, key.lstrip("+")) if equals else None
    if declared is str:
        return f"{key}={_quoted(value)}"
    if declared == list[str] and value.strip() and not value.strip().startswith(("[", "$", "null")):
        return f"{key}=[{_quoted(value)}]"  # one element needs no brackets
    if declared == list[str] and value.strip().startswith("[") and value.strip().endswith("]"):
        return f"{key}=[{','.join(_quoted(element.strip()) for element in _elements(value.strip()[1:-1]))}]"
    return override


def _declared_type(schema: type, key: str) -> Any:
    """The type of a dotted key, without ``| None``; None if the schema has no such key."""
    name, _, rest = key.partition(".")
    declared = get_type_hints(schema).get(name)
    alternatives = [a for a in get_args(declared) if a is not type(None)]
    if type(None) in get_args(declared) and len(alternatives) == 1:
        declared = alternatives[0]
    if not rest:
        return declared
    return _declared_type(cast(type, declared), rest) if dataclasses.is_dataclass(declared) else None


def _quoted(value: str) -> str:
    if value.strip().lower() == "null" or re.fullmatch(_IN_QUOTES, value.strip(), re.DOTALL):
        return value
    # OmegaConf would read ${...} as an interpolation; \${...} is the text, and a backslash before it counts double.
    literal = re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)
    return QuotedString(literal, Quote.single).with_quotes()


_IN_QUOTES = r"'(?:\\.|[^'\\])*'" + "|" + r'"(?:\\.|[^"\\])*"'


def _elements(inside: str) -> list[str]:
    """The elements of a list: split at commas outside of quotes, where a quote opens nothing but an element."""
    one = rf"\s*((?:{_IN_QUOTES})(?=\s*(?:,|$))|[^,]*?)\s*(?:,|$)"
    return [found[1] for found in re.finditer(one, inside, re.DOTALL)][:-1]  # the last match is the empty end


def _suggestion(schema: type, overrides: Sequence[str]) -> str:
    """``; did you mean …?`` for the first key that the schema does not have but nearly has."""
    known = list(_keys(schema))
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        close = difflib.get_close_matches(key, known, 1)
        if key not in known and close:
            return f"; did you mean {close[0]!r}?"
    return ""


def _keys(schema: type, prefix: str = "") -> Iterator[str]:
    """All keys of a schema, dotted."""
    for field in dataclasses.fields(cast(Any, schema)):
        yield f"{prefix}{field.name}"
        declared = _declared_type(schema, field.name)
        if dataclasses.is_dataclass(declared):
            yield from _keys(cast(type, declared), f"{prefix}{field.name}.")


def _explain_renamed(error: Exception, renamed: dict[str, str]) -> None:
    """UserError with the new name if the key that nobody knows is one of ``renamed`` (old key: new key)."""
    unknown = re.search(r"full_key: (\S+)", f"{error} {error.__cause__}")  # Hydra's error wraps OmegaConf's
    for old, new in renamed.items():
        if unknown and (unknown[1] == old or unknown[1].startswith(f"{old}.")):
            raise UserError(f"{old} is now called {new}: use that name instead") from error


def run_command(
    main: Callable[[T], Any],
    schema: type[T],
    config_name: str | None = None,
    argv: list[str] | None = None,
    quiet: bool = False,
) -> None:
    """Parse the command line, call ``main(config)``; a UserError becomes one plain message and exit code 2.

    schema, config_name: as for :func:`compose_config`. quiet: print neither help nor message (ranks beyond the first).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "-h" in arguments or "--help" in arguments:
        if not quiet:
            print(help_text(main, schema))
        return
    try:
        try:
            main(compose_config(schema, arguments, config_name))
        except ModuleNotFoundError as error:
            raise missing_extra(error, module_name(main)) from error
        except OSError as error:
            if error.errno not in _OF_THE_DISK:
                raise
            raise UserError(
                f"{error.filename or 'the disk'}: {os.strerror(error.errno)}. What is finished is kept: make room, or "
                "give a folder that can be written to, and run the same command again"
            ) from error
    except UserError as error:
        if not quiet:
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def module_name(function: Callable[..., Any]) -> str:
    """The name under which a function's module is imported, also when it runs as ``__main__``."""
    spec = getattr(inspect.getmodule(function), "__spec__", None)
    return spec.name if spec else function.__module__


def help_text(main: Callable[[T], Any], schema: type[T]) -> str:
    """The text of ``--help``: what the command does, then each field as ``key=default  meaning``."""
    module = inspect.getmodule(main)
    about = inspect.getdoc(main) or (module and inspect.getdoc(module)) or ""
    lines = [about, "", "Options, each given as key=value (Hydra override syntax):", *_help_lines(schema, "")]
    return "\n".join(lines)


def _help_lines(schema: type, prefix: str) -> list[str]:
    lines = []
    for field in dataclasses.fields(cast(Any, schema)):
        default = (
            field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        )
        if dataclasses.is_dataclass(default):
            lines += [f"  {prefix}{field.name}:  {field.metadata.get('help', '')}"]
            lines += _help_lines(type(cast(Any, default)), f"{prefix}{field.name}.")
            continue
        shown = "REQUIRED" if default in (MISSING, dataclasses.MISSING) else default
        if shown is None or isinstance(shown, bool):
            shown = json.dumps(shown)  # null, true, false: as they are written on the command line
        lines.append(f"  {prefix}{field.name}={shown}\n        {field.metadata.get('help', '')}")
    return lines


def _reason(error: Exception) -> str:
    """What Hydra and the error behind it say, without their advice and stack."""
    lines = [line.strip() for e in (error, error.__cause__) if e is not None for line in str(e).splitlines()]
    reasons = [line for line in lines if line and not line.startswith(_ADVICE)]
    return " ".join(dict.fromkeys(reasons))


_ADVICE = (
    "See https:",
    "To append to your config",
    "Set the environment variable",
    "full_key:",
    "object_type=",
    "reference_type=",
    "Config search path",
    "provider=",
)
