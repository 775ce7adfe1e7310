"""The command line: everyday text arrives as it was typed, mistakes are answered in one sentence."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from filip.cli.command import MISSING, compose_config, option, run_command
from filip.common.errors import UserError
from filip.train.config import TrainConfig


@dataclass
class Nested:
    text: str = "default"


@dataclass
class Options:
    """The options of a command that exists only here."""

    text: str = option("default", "a sentence")
    maybe: str | None = option(None, "a sentence or nothing")
    texts: list[str] = option([], "sentences")
    number: int = option(1, "a number")
    numbers: list[int] = option([], "numbers")
    rules: dict[str, Any] = option({}, "new names may be written into it")
    weights: dict[str, float | None] = option({"one": None, "two": None}, "these names and no others")
    nested: Nested = field(default_factory=Nested)


EVERYDAY = [
    "a man's dog", "a dog, running", "café!", "results/lr=0.1/model (1).safetensors",
    "it's \"quoted\" twice: 'so' and 'so'", '"unbalanced', "'", "a photo of a {c}.", "[a] and {b}",
    "${name} costs $5", "\\${name}", "number #1", "100%25 off", "C:\\images\\", "ends in \\'", "日本語 🦙",
    "two\nlines", "  spaces around  ", "", "1e3", "007", "true", "~", "a: b", "x@y?z=1&w=2;*|",
]  # fmt: skip


@pytest.mark.parametrize("text", EVERYDAY)
def test_a_text_arrives_as_it_was_typed(text: str) -> None:
    result = compose_config(Options, [f"text={text}", f"maybe={text}", f"nested.text={text}"])
    assert (result.text, result.maybe, result.nested.text) == (text, text, text)


@pytest.mark.parametrize(
    ("given", "elements"),
    [
        ("[a man's dog,café!]", ["a man's dog", "café!"]),
        ("[ a (1).png , b=c ]", ["a (1).png", "b=c"]),
        ("['a dog, running', \"it's\"]", ["a dog, running", "it's"]),
        ("[]", []),
        ("['']", [""]),
        ("[007,1e3,true]", ["007", "1e3", "true"]),
        ("[${x},50%]", ["${x}", "50%"]),
    ],
)
def test_the_elements_of_a_list_of_texts_arrive_as_they_were_typed(given: str, elements: list[str]) -> None:
    assert compose_config(Options, [f"texts={given}"]).texts == elements


def test_null_and_hydras_own_quotes_and_interpolations_in_them_still_work() -> None:
    result = compose_config(
        Options, ["maybe=null", 'text="a dog, running"', "nested.text='${text}'", "number=3", "numbers=[1,2]"]
    )
    assert result.maybe is None
    assert result.text == result.nested.text == "a dog, running"
    assert (result.number, result.numbers) == (3, [1, 2])


def test_names_can_be_written_into_a_dict() -> None:
    assert compose_config(Options, ["rules={a:1,b:[x]}"]).rules == {"a": 1, "b": ["x"]}
    assert compose_config(Options, ["rules.a=1", "rules.b=text"]).rules == {"a": 1, "b": "text"}
    assert compose_config(Options, ["weights.two=0.5"]).weights == {"one": None, "two": 0.5}
    with pytest.raises(UserError, match=r"^there is no option 'three' in weights; there are one, two"):
        compose_config(Options, ["weights.three=1"])


@pytest.mark.parametrize("override", ["+other=1", "++other=1", "+nested.other=1", "++nested.other=1"])
def test_hydras_plus_adds_no_key_that_the_command_does_not_have(override: str) -> None:
    with pytest.raises(UserError, match=r"there is no option 'other'( in nested)?; there are text"):
        compose_config(Options, [override])
    assert compose_config(Options, ["++number=4"]).number == 4


@dataclass
class Required:
    out: str = option(MISSING, "file")


def imports(config: Required) -> None:
    """Import what is not there."""
    __import__(config.out)


def test_a_module_that_is_not_installed_is_answered_with_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command(imports, Required, argv=["out=not_a_module_of_anybody"])
    assert "pip install not_a_module_of_anybody" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):  # a bug of ours, not a missing package
        run_command(imports, Required, argv=["out=filip.no_such_module"])


def test_what_launchers_append_is_passed_over(tmp_path: Path) -> None:
    assert compose_config(Options, ["--local_rank=0", "--local-rank=1", "number=2"]).number == 2


@pytest.mark.parametrize(
    "given",
    [
        ["experiment=demo", "max_steps=7", "data.sources=[{shards: a, weight: 2}]"],
        ["max_steps=7", "model=tiny", "experiment=base", "optimizer={name: adamw, base_lr: 1e-3}"],
        ["experiment=base", "loss.pooled=0.5", "loss={token_wise: 2}", "token_keep_schedule=null"],
        ["model.image.layers=3", "model=demo", "++seed=5"],
    ],
)
def test_values_that_are_set_on_composed_files_are_those_that_hydra_sets(given: list[str]) -> None:
    given = [*given, "run_dir=-", "out=-"]
    ours = compose_config(TrainConfig, given, "train")
    GlobalHydra.instance().clear()
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)  # other commands store theirs by that name
    with initialize_config_module("filip.conf", version_base="1.3"):
        composed = compose("train", overrides=given)
    hydras = OmegaConf.merge(OmegaConf.structured(TrainConfig), OmegaConf.to_container(composed))
    assert OmegaConf.to_object(hydras) == ours
