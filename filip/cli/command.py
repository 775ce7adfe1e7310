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

import copy
import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Callable, Container, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

from hydra import compose, initialize, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from filip.cli.extras import missing_extra
from filip.cli.option import check_values, option, range_of
from filip.cli.overrides import check_overrides, config_groups, options_of, parse, structured_config
from filip.common.errors import UserError, first_line, reader_may_leave, stopped_by_ctrl_c
from filip.common.files import check_output, disk_error, explained

T = TypeVar("T")
__all__ = ["MISSING", "compose_config", "option", "run_command"]


def compose_config(schema: type[T], overrides: Sequence[str], config_name: str | None = None) -> T:
    """Compose ``filip/conf/<config_name>.yaml`` (if any) with ``overrides`` and check it against ``schema``.

    The file's defaults list may start with ``<config_name>_schema``, the defaults of ``schema``. Launchers' arguments
    (``--local_rank``) are ignored. Returns an instance of the dataclass ``schema``. Raises UserError for an unknown
    key, a value of the wrong type or outside of its range, or a required field (``MISSING``) without a value.
    """
    arguments = [a for a in overrides if not a.startswith(("--local_rank", "--local-rank"))]
    groups = {} if config_name is None else config_groups()
    check_overrides(schema, arguments, groups)
    try:
        values = [parse(cast(type, schema), override) for override in arguments]
        # Composing takes a tenth of a second, so it is done once for all values of the same files.
        files = tuple(value.input_line for value in values if _is_of_hydra(value, groups))
        config = copy.deepcopy(_composed(cast(type, schema), config_name, files))
        for value in values:
            if not _is_of_hydra(value, groups):
                OmegaConf.update(config, value.key_or_group, value.value(), merge=True)
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise UserError(f"required but not given: {', '.join(missing)}; add e.g. {missing[0]}=VALUE (see --help)")
        settings = OmegaConf.to_object(config)
    except (HydraException, OmegaConfBaseException) as error:  # no single argument is to blame
        raise UserError(
            f"the options do not fit together: {first_line(error)} (given: {' '.join(arguments)}; see --help)"
        ) from error
    check_values(settings)
    return cast(T, settings)


def _is_of_hydra(override: Override, groups: Container[str]) -> bool:
    """Return whether an override chooses a file, adds or deletes a key: more than a value of a key that is there."""
    key = override.key_or_group
    plain = override.type == OverrideType.CHANGE and override.package is None
    return not plain or key in groups or key.startswith("hydra.")


@lru_cache(maxsize=64)
def _composed(schema: type, config_name: str | None, overrides: tuple[str, ...]) -> DictConfig:
    """Let Hydra compose a command's files and defaults. The result is not to be changed."""
    if config_name is None and not overrides:
        # The defaults alone. Hydra would give the same, and look at every imported module first.
        return cast(DictConfig, structured_config(schema))
    GlobalHydra.instance().clear()
    # A command without a config file must not see filip/conf: its folders are groups, and `model=PATH` would
    # then ask for the group `model`.
    sources = (
        initialize(config_path=None, version_base="1.3")
        if config_name is None
        else initialize_config_module("filip.conf", version_base="1.3")
    )
    with sources:
        schema_name = f"schema_{schema.__name__}" if config_name is None else f"{config_name}_schema"
        ConfigStore.instance().store(name=schema_name, node=schema)
        composed = compose(config_name or schema_name, overrides=list(overrides))
    # Merged as plain values, which the schema checks: Hydra's `+key=value` would add a key that it does not have.
    return cast(DictConfig, OmegaConf.merge(structured_config(schema), OmegaConf.to_container(composed)))


def run_command(
    main: Callable[[T], Any],
    schema: type[T],
    config_name: str | None = None,
    argv: list[str] | None = None,
    quiet: bool = False,
    words: Sequence[str] = (),
) -> None:
    """Parse the command line, call ``main(config)``; a UserError becomes one plain message and its exit code.

    schema, config_name: as for :func:`compose_config`. quiet: print neither help nor message (ranks beyond the first).
    words: the options that arguments without a name set, in order.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with stopped_by_ctrl_c(), reader_may_leave():
        if "-h" in arguments or "--help" in arguments:
            if not quiet:
                print(help_text(main, schema, words))
            return
        try:
            arguments = _named(arguments, words)
            config = compose_config(schema, arguments, config_name)
            check_outputs(config)
            main(config)
        except Exception as error:
            fault: Exception | None = error
            if isinstance(error, ModuleNotFoundError):
                fault = missing_extra(error, module_name(main))
            elif not isinstance(error, UserError) and (of_disk := disk_error(error)):
                fault = explained(of_disk, [argument.partition("=")[2] for argument in arguments])
            if not isinstance(fault, UserError):
                raise
            if not quiet:
                print(f"error: {fault}", file=sys.stderr, flush=True)
            sys.exit(fault.exit_code)


def _named(arguments: list[str], words: Sequence[str]) -> list[str]:
    """Give the arguments without a name the names of ``words``: ``PHOTOS "a text"`` is ``images=PHOTOS text=…``."""
    options = [argument for argument in arguments if argument.startswith("-") or re.match(r"[+~]?[\w.]*=", argument)]
    bare = [argument for argument in arguments if argument not in options]
    if not words or any(option.startswith("-") for option in options):
        return arguments
    free = [word for word in words if not any(option.startswith(f"{word}=") for option in options)]
    if len(bare) > len(free):
        raise UserError(
            f"{len(bare)} words without a name, and only {' and '.join(free) or 'none'} can be given so; put the text "
            f'in quotes, as in: {bare[0]} "{" ".join(bare[1:])}"'
        )
    return [f"{name}={word}" for name, word in zip(free, bare, strict=False)] + options


def check_outputs(config: Any) -> None:
    """Raise UserError for the first option that names a file or folder which cannot be written."""
    from filip.images.rgb import IMAGE_FILES

    for field in dataclasses.fields(config):
        if kind := field.metadata.get("writes"):
            check_output(field.name, getattr(config, field.name) or "", "file" if kind == "file" else "folder")
        folder = Path((kind == "store" and getattr(config, field.name)) or "/dev/null")
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
        if picture := next((entry.name for entry in entries if entry.suffix.lower() in IMAGE_FILES), None):
            raise UserError(
                f"{field.name}={folder}: this folder has pictures, such as {picture}, and with the files of this "
                f"command it would no longer be read as pictures; give another folder, e.g. {field.name}={folder}."
                f"{field.name}"
            )


def module_name(function: Callable[..., Any]) -> str:
    """Return the name under which a function's module is imported, also when it runs as ``__main__``."""
    spec = getattr(inspect.getmodule(function), "__spec__", None)
    return spec.name if spec else function.__module__


def help_text(main: Callable[[T], Any], schema: type[T], words: Sequence[str] = ()) -> str:
    """Return the text of ``--help``: the command's summary, then each field as ``key=default  meaning``."""
    module = inspect.getmodule(main)
    about = inspect.getdoc(main) or (module and inspect.getdoc(module)) or ""
    command = module_name(main).removeprefix("filip.").removesuffix(".__main__").replace(".", " ")
    usage = [f"usage: filip {command} {' '.join(word.upper() for word in words)} [key=value ...]", ""] if words else []
    lines = [*usage, about, "", "Options, each given as key=value (Hydra override syntax):", *_help_lines(schema, "")]
    return "\n".join(lines)


def _help_lines(schema: type, prefix: str) -> list[str]:
    lines = []
    for field in options_of(schema):
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        if dataclasses.is_dataclass(default):
            lines += [f"  {prefix}{field.name}:  {field.metadata.get('help', '')}"]
            lines += _help_lines(type(cast(Any, default)), f"{prefix}{field.name}.")
            continue
        shown = "REQUIRED" if default in (MISSING, dataclasses.MISSING) else default
        if shown is None or isinstance(shown, bool):
            shown = json.dumps(shown)  # null, true, false: as they are written on the command line
        bounds = f" ({range_})" if (range_ := range_of(field)) else ""
        lines.append(f"  {prefix}{field.name}={shown}\n        {field.metadata.get('help', '')}{bounds}")
    return lines
