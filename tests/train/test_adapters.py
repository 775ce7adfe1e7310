"""Frozen towers and low-rank adapters: what learns, what is saved, and what it takes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from filip.cli.command import run_command
from filip.models import DualEncoder, TextFeatures, build_model, load_preset, save_model
from filip.runs.source import merged, read_source
from filip.text.tokenizer import tokenize
from filip.train.config import TrainConfig
from filip.train.costs import count
from filip.train.engine import Batching
from filip.train.loop import initial_model
from filip.train.optimizers import make_optimizer, set_lr
from filip.train.plan import Plan, main
from tests.support.training import compose, run_many, same_weights, train_arguments

ALWAYS = {"image.projection.weight", "text.projection.weight", "logit_scale"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("source") / "source.safetensors"
    save_model(file, build_model(load_preset("tiny")))
    return file


def started(source: Path, *overrides: str) -> tuple[DualEncoder, TrainConfig]:
    config = compose("model=tiny", f"init_from={source}", "optimizer.name=adamw", *overrides)
    return initial_model(config), config


def encoded(model: DualEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    ids, lengths = tokenize(["a red dog", "two cats"], 16)
    generator = torch.Generator().manual_seed(0)
    result = model(torch.randn(2, 3, model.image_size, model.image_size, generator=generator), ids, lengths)
    assert isinstance(result.text, TextFeatures)
    return result.image, result.text.tokens


def take_steps(model: DualEncoder, config: TrainConfig, steps: int = 3) -> None:
    optimizer = make_optimizer(model, config.optimizer)
    for _ in range(steps):
        set_lr(optimizer.param_groups, 0.01)
        image, text = encoded(model)
        (model.scale() * image[0] @ text.T).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("image", "text"), [("lora", "lora"), ("frozen", "full"), ("frozen", "lora")])
def test_only_what_should_learn_moves(source: Path, image: str, text: str) -> None:
    model, config = started(source, f"warm_start.image={image}", f"warm_start.text={text}")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    take_steps(model, config)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved >= ALWAYS
    for tower, tuning in (("image.", image), ("text.", text)):
        own = {name for name in moved - ALWAYS if name.startswith(tower)}
        adapters = {name for name in before if name.startswith(tower) and ".lora_" in name}
        if tuning == "lora":
            assert own == adapters != set()
        elif tuning == "frozen":
            assert own == adapters == set()
        else:
            assert own == {name for name in before if name.startswith(tower)} - ALWAYS


def test_adapters_begin_as_the_model_and_are_saved_merged(source: Path, tmp_path: Path) -> None:
    model, config = started(source, "warm_start.image=lora", "warm_start.text=lora")
    for ours, theirs in zip(encoded(model), encoded(started(source)[0]), strict=True):
        torch.testing.assert_close(ours, theirs)
    take_steps(model, config)
    plain = build_model(model.config)
    plain.load_state_dict(merged(model.state_dict()))
    for ours, theirs in zip(encoded(model), encoded(plain), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    layer: Any = model.text.blocks[0].qkv
    layer.merge()  # peft's own
    torch.testing.assert_close(layer.base_layer.weight, plain.text.blocks[0].qkv.weight)
    assert not torch.equal(plain.text.blocks[0].qkv.weight, load_file(source)["text.blocks.0.qkv.weight"])


def test_the_plan_counts_what_learns(source: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    batching = Batching(8, 8, 1, 8)
    plans = {}
    for tuning in ("full", "frozen", "lora"):
        model, config = started(source, f"warm_start.image={tuning}", f"warm_start.text={tuning}", "precision=fp32")
        plans[tuning] = count(config.model, config, batching, 1)
        assert plans[tuning].trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert plans[tuning].memory["weights"] == 4 * sum(p.numel() for p in model.parameters())
        assert plans[tuning].memory["gradients"] == 4 * plans[tuning].trainable
        assert plans[tuning].memory["moments"] == 8 * plans[tuning].trainable
    assert plans["frozen"].memory["activations"] < plans["lora"].memory["activations"]
    run_command(main, Plan, "train", ["experiment=lora", "model=tiny", f"init_from={source}", "gpus=1"])
    whole, learning = sum(plans["lora"].parameters.values()), plans["lora"].trainable
    assert f"model       {whole:,} parameters" in (printed := capsys.readouterr().out)
    assert f"; {learning:,} learn" in printed


@pytest.mark.slow
def test_adapters_train_on_two_ranks_and_resume_and_are_exported(source: Path, squares: Path, tmp_path: Path) -> None:
    common = (
        f"init_from={source}", "warm_start.image=frozen", "warm_start.text=lora", "max_steps=4",
        "checkpoint.every_steps=2", "optimizer.warmup_steps=1",
    )  # fmt: skip
    folders = {name: tmp_path / name for name in ("one", "resumed", "three")}
    at_two = folders["one"] / "checkpoints/step00000002"
    runs = [
        train_arguments(squares, folders["one"], *common, "zero_stage=1"),
        train_arguments(squares, folders["resumed"], *common, "zero_stage=1", f"resume={at_two}"),
        train_arguments(squares, folders["three"], *common, "zero_stage=3"),
    ]
    assert run_many(2, runs, tmp_path / "log") == [0, 0, 0]
    assert same_weights(folders["one"] / "model.safetensors", folders["resumed"] / "model.safetensors")
    before, after = load_file(source), load_file(folders["one"] / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    blocks = {name for name in before if name.startswith("text.blocks.") and before[name].ndim == 2}
    assert moved == ALWAYS | blocks
    for name, value in load_file(folders["three"] / "model.safetensors").items():
        torch.testing.assert_close(value, after[name], atol=1e-5, rtol=1e-4)
    exported = read_source(str(at_two)).model
    assert exported.state_dict().keys() == before.keys()
    text = exported.state_dict()["text.blocks.0.qkv.weight"]
    assert not torch.equal(text, before["text.blocks.0.qkv.weight"])
