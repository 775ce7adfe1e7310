"""Every configuration file is loaded by the code that reads it; what cannot work is refused in plain words."""

import json
import re
from pathlib import Path

import pytest

from filip.common.errors import UserError
from filip.resources import shipped
from filip.study import load_study
from filip.train.__main__ import as_options
from filip.train.config import PRECISIONS
from filip.train.engine import Batching, checked_settings, resolve_batching, use_precision
from tests.support.training import compose

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "filip/conf/experiment").glob("*.yaml"))
SETTINGS = sorted(shipped("ds_configs").glob("*.json"))
START = {name: ["init_from=open_clip:ViT-B-32:openai"] for name in ("warm_start", "lit", "lora")}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_finds_its_deepspeed_settings(name: str) -> None:
    config = compose(f"experiment={name}", *START.get(name, []))
    world_size = {"base": 128, "large": 192}.get(name.removesuffix("_ours"), 8)
    batching = resolve_batching(config, world_size)
    for precision in PRECISIONS if config.precision == "auto" else (config.precision,):
        use_precision(config, precision)  # as settle_precision does where the training runs
        assert config.engine == "deepspeed" or precision != "fp16"
        assert checked_settings(config) and batching.pairs_per_step % world_size == 0


@pytest.mark.slow
def test_every_experiment_and_its_studies_have_the_recipe_of_the_page() -> None:
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| `(token_maximum=[^`]+)` \|", page, re.MULTILINE)
    recipes = {name: options.split() for names, options in rows for name in re.findall(r"\w+", names)}
    trained = {name: ([f"experiment={name}", *START.get(name, [])], recipes.get(name)) for name in EXPERIMENTS}
    for study in map(load_study, (ROOT / "workflow/config").glob("*.yaml")):
        experiment = study.config["train"]["experiment"]
        if not experiment.startswith("demo"):  # whose studies compare maxima and optimisers
            for run in study.runs:
                start = [f"experiment={experiment}", *study.training(run)["overrides"]]
                trained[f"{study.name} {run}"] = start, recipes[experiment][:2]  # without the tokens
    different = [name for name, (start, recipe) in trained.items() if compose(*start, *recipe) != compose(*start)]
    assert sorted(recipes) == EXPERIMENTS and different == []


@pytest.mark.parametrize("path", SETTINGS, ids=lambda p: p.stem)
def test_deepspeed_reads_every_settings_file_as_it_is_named(path: Path) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    stage, precision = path.stem.removeprefix("zero").split("_")
    config = compose(f"zero_stage={stage}", f"precision={precision}", "global_batch=64", f"deepspeed={path.stem}")
    read = DeepSpeedConfig({**checked_settings(config), "train_batch_size": 64})
    assert read.zero_optimization_stage == int(stage)
    assert read.float16_config.enabled == (precision == "fp16")
    assert read.torch_autocast_enabled == (precision == "bf16")
    assert read.gradient_clipping == 0.0
    assert read.zero_config.round_robin_gradients is False


@pytest.mark.parametrize("typed", [["--deepspeed_config", "{}"], ["--deepspeed_config={}"]])
def test_deepspeed_s_own_arguments_name_the_settings(typed: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    settings = json.loads((shipped("ds_configs") / "zero1_fp32.json").read_text())
    path.write_text(json.dumps({**settings, "steps_per_print": 7}))
    typed = ["precision=fp32", "--deepspeed", *(word.format(path) for word in typed), "max_steps=3"]
    config = compose(*as_options(typed))
    assert checked_settings(config)["steps_per_print"] == 7 and config.max_steps == 3
    assert as_options([]) == [] and as_options(["--deepspeed_config"]) == ["--deepspeed_config"]  # which is refused


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("gradient_clipping"), "gradient_clipping is missing"),
        (lambda s: s.update(optimizer={"type": "Lamb"}), "optimizer is decided by the training config"),
        (lambda s: s.update(torch_autocast={"enabled": True, "dtype": "float16"}), "never lowers its loss scale"),
        (lambda s: s.update(bf16={"enabled": True}), "trains in bf16, but precision=fp32"),
        (lambda s: s["zero_optimization"].update(stage=2), "ZeRO stage 2, but zero_stage=1"),
        (lambda s: s["zero_optimization"].update(round_robin_gradients=True), "round_robin_gradients=True"),
        (lambda s: s["zero_optimization"].update(offload_optimizer={"device": "cpu"}), "offload_optimizer"),
    ],
)
def test_settings_that_deepspeed_would_accept_and_do_wrongly_are_refused(change, sentence: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    settings = json.loads((shipped("ds_configs") / "zero1_fp32.json").read_text())
    change(settings)
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(settings))
    config = compose("precision=fp32", f"deepspeed={path}", "global_batch=64")
    with pytest.raises(UserError, match=sentence):
        checked_settings(config)


def test_batch_arithmetic() -> None:
    config = compose("global_batch=96", "gradient_accumulation=2", "gradient_cache=8")
    assert resolve_batching(config, 4) == Batching(global_batch=96, per_rank=24, accumulation=2, chunk=8)
    assert resolve_batching(config, 4).chunks == 3 and resolve_batching(config, 4).pairs_per_step == 192
    assert resolve_batching(compose(), 8).global_batch == 8192
    fixed = compose("batch_per_rank=512")
    assert resolve_batching(fixed, 8).global_batch == 4096
    with pytest.raises(UserError, match="cannot be shared evenly by 5 ranks"):
        resolve_batching(config, 5)
    with pytest.raises(UserError, match="gradient_cache=7 must divide the 24 pairs"):
        resolve_batching(compose("global_batch=96", "gradient_cache=7"), 4)
