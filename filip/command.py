"""Turn a function of one config dataclass into a command configured by Hydra overrides.

    @dataclass
    class TextRules:
        list: str = option(MISSING, "Parquet file with the columns url and caption")
        min_words: int = option(1, "captions with fewer words are dropped")

    def main(config: TextRules) -> None: ...

    if __name__ == "__main__":
        run_command(main, TextRules)

Then ``python -m filip.data.text_rules list=a.parquet min_words=2`` works, and ``--help`` lists every field.
Hydra's compose API is used rather than ``@hydra.main``: a command has no need of a dated output folder, and
launchers append ``--local_rank``, which ``@hydra.main`` rejects.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

from hydra import compose, initialize, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from filip.errors import UserError

T = TypeVar("T")
__all__ = ["MISSING", "compose_config", "option", "run_command"]


def option(default: Any, help: str) -> Any:
    """A config field with its default and the sentence that ``--help`` prints for it."""
    if isinstance(default, list | dict) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: default, metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def compose_config(schema: type[T], overrides: list[str], config_name: str | None = None) -> T:
    """Compose ``filip/conf/<config_name>.yaml`` (if any) with ``overrides`` and check it against ``schema``.

    Returns an instance of the dataclass ``schema``. Raises UserError for an unknown key, a value of the
    wrong type or a required field (``MISSING``) that nobody set.
    """
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
                composed = compose(f"schema_{schema.__name__}", overrides=overrides)
            else:
                composed = compose(config_name, overrides=overrides)
        config = OmegaConf.merge(OmegaConf.structured(schema), composed)
        assert isinstance(config, DictConfig)
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise UserError(
                f"required but not given: {', '.join(missing)}; add e.g. {missing[0]}=VALUE (see --help)"
            )
        return cast(T, OmegaConf.to_object(config))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(
            f"bad configuration: {_first_lines(error)} (given: {' '.join(overrides) or 'nothing'}; see --help)"
        ) from error


def run_command(
    main: Callable[[T], Any], schema: type[T], config_name: str | None = None, argv: list[str] | None = None
) -> None:
    """Parse the command line, call ``main(config)``; a UserError becomes one plain message and exit code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "-h" in arguments or "--help" in arguments:
        print(help_text(main, schema))
        return
    overrides = [
        a for a in arguments if not a.startswith("--local_rank") and not a.startswith("--local-rank")
    ]
    try:
        main(compose_config(schema, overrides, config_name))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


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


def _first_lines(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:2])
