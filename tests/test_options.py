"""No number that makes no sense passes an option of any command: one sentence names it, and nothing is started."""

import ast
import dataclasses
import importlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from filip.cli.command import MISSING, compose_config, help_text, option
from filip.cli.option import read_settings
from filip.cli.overrides import options_of
from filip.common.errors import UserError
from filip.eval.pictures import alignment, scenes
from filip.train.config import TrainConfig
from tests.test_wrong_commands import JARGON

NEVER = ("nan", "inf", "word", "-1")
PERHAPS = ("0", "1e9")  # refused, or taken: some options have no upper bound
NEGATIVE = ("filip.search.__main__", "least")  # in standard deviations above the mean of the pictures


def schemas() -> Iterator[tuple[str, type, str | None]]:
    """Yield each command's name, options and Hydra file, as its module gives them to ``run_command``."""
    for file in sorted((Path(__file__).parent.parent / "filip").rglob("*.py")):
        calls = [
            node
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "run_command"
        ]
        if calls and file.name != "picture.py":  # the options of its kinds follow
            name = ".".join(file.relative_to(Path(__file__).parent.parent).with_suffix("").parts)
            text = [ast.unparse(argument) for argument in calls[0].args]
            config_name = ast.literal_eval(text[2]) if len(text) > 2 and text[2] != "None" else None
            # that of `filip train` is imported when it is called
            yield name, getattr(importlib.import_module(name), text[1], TrainConfig), config_name
    for kind in (alignment.AlignmentSheet, scenes.SceneSheet):
        yield f"filip.eval.picture {kind.__name__}", kind, None


SCHEMAS = list(schemas())


def numbers(schema: type, prefix: str = "") -> Iterator[str]:
    """Yield the names of all options that take a number, or a list of numbers."""
    for field in options_of(schema):
        declared = get_type_hints(schema)[field.name]
        kinds = {*itertools.chain((declared,), get_args(declared), *map(get_args, get_args(declared)))}
        if dataclasses.is_dataclass(declared):
            yield from numbers(declared, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        elif kinds & {int, float}:
            yield f"{prefix}{field.name}"


@pytest.mark.parametrize(("name", "schema", "config_name"), SCHEMAS, ids=[name for name, _, _ in SCHEMAS])
def test_no_option_takes_a_number_that_makes_no_sense(name: str, schema: type, config_name: str | None) -> None:
    required = {f.name: "1" for f in dataclasses.fields(schema) if f.default == MISSING}  # a text or a number
    for option_name in numbers(schema):
        for value in (*NEVER, *PERHAPS):
            given = [f"{key}={text}" for key, text in (required | {option_name: value}).items()]
            try:
                config: Any = compose_config(schema, given, config_name)
            except UserError as error:
                assert str(error).startswith(f"{option_name}=") and "\n" not in str(error)
                assert not JARGON.search(str(error)), str(error)
            else:
                assert value in PERHAPS or (value, name, option_name) == ("-1", *NEGATIVE), (option_name, value, config)


def test_a_training_checks_what_it_was_given_before_any_work() -> None:
    """The loss's weights are numbers too, of a dict."""
    for value in ("nan", "inf", "-1", "word", "[1]"):
        config = compose_config(TrainConfig, [f"loss.pooled={value}", "run_dir=-", "out=-.safetensors"], "train")
        with pytest.raises(UserError, match=r"^loss\.pooled='?\[?(nan|inf|-1|word|1)"):
            config.check()


def command(config: object) -> None:
    """Do nothing."""


@dataclass
class Cup:
    size: int = option(3, "how much it holds", above=0, at_most=9)
    names: list[str] = option([], "names on it", choices=("a", "b"))


@dataclass
class Table:
    cups: list[Cup] = option([], "the cups on it")
    best: Cup = option(Cup(), "the one that is used first")
    legs: float | None = option(None, "how many; null = by its size", at_least=1)


def test_help_shows_ranges_and_choices() -> None:
    text = help_text(command, Table)
    assert "how much it holds (above 0 and at most 9)" in text
    assert "names on it (one of a, b)" in text and "null = by its size (at least 1)" in text
    assert help_text(command, TrainConfig).count("(at least") > 30


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"best": {"size": 0}}, r"^best\.size=0 must be above 0"),
        ({"best": {"size": "wide"}}, r"^best\.size=wide: size takes a whole number$"),
        ({"best": {"names": ["a", "c"]}}, r"^best\.names=c must be one of a, b"),
        ({"best": {"siz": 1}}, r"^there is no key 'siz' in best; did you mean 'size'"),
        ({"best": 3}, r"^best=3: best takes options inside it"),
        ({"legs": float("nan")}, "^legs=nan must be a finite number, at least 1$"),
        ({"legs": "many"}, "^legs=many: legs takes a number, or null$"),
    ],
)
def test_a_file_s_values_are_checked_as_those_of_a_command(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_settings(Table, values)
    with pytest.raises(UserError, match=r"^cups\[1\]\.size=10 must be above 0 and at most 9$"):
        compose_config(Table, ["cups=[{size: 2}, {size: 10}]"])
    assert read_settings(Table, {"legs": None, "best": {"names": ["b"]}}) == Table(best=Cup(names=["b"]))
