"""A training that starts from a model goes on with its weights; what of it learns, how fast and from which step on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from filip.errors import UserError
from filip.models import TextFeatures, build_model, load_preset, save_model
from filip.tokenizer import tokenize
from filip.train.engine import make_optimizer
from filip.train.loop import initial_model
from filip.train.param_groups import set_lr
from tests.support.clips import hf_folder
from tests.support.training import compose


def test_a_training_starts_from_it_with_its_own_interaction_and_size(tmp_path: Path) -> None:
    hf_folder(tmp_path / "clip")
    config = compose(f"init_from=hf:{tmp_path / 'clip'}", "model.cls_in_interaction=true", "image_size=64")
    model = initial_model(config)
    assert model.training and model.image_size == 64 and model.image.grid == (2, 2)
    assert config.model.interaction == "token_wise" and config.model.cls_in_interaction
    assert config.model.embed_dim == 32 and config.model.image.activation == "quick_gelu"
    assert config.model == model.config and dataclasses.asdict(config)["init_from"].startswith("hf:")


def test_a_pooled_model_of_ours_goes_on_token_wise_with_the_same_weights(tmp_path: Path) -> None:
    source = build_model(load_preset("tiny"))
    source.set_interaction("pooled")
    save_model(tmp_path / "clip.safetensors", source)
    start = f"init_from={tmp_path / 'clip.safetensors'}"
    ids, lengths = tokenize(["a red dog", "two cats"], 16)
    pixels = torch.randn(2, 3, source.image_size, source.image_size)
    as_it_is = initial_model(compose("model=tiny", start)).eval()
    assert as_it_is.config.interaction == "pooled"
    config = compose("model=tiny", start, "warm_start.interaction=token_wise")
    model = initial_model(config).eval()
    assert model.config.interaction == config.model.interaction == "token_wise" and config.loss["token_wise"] == 1
    encoded = model(pixels, ids, lengths, tokens_and_vectors=True)
    assert encoded.pooled is not None
    expected = source.eval()(pixels, ids, lengths)
    torch.testing.assert_close(encoded.pooled.image, expected.image)
    torch.testing.assert_close(encoded.pooled.text, expected.text)


@pytest.mark.parametrize("optimizer", ["lamb", "adamw"])
def test_lower_blocks_move_slower_and_at_first_only_the_projections(tmp_path: Path, optimizer: str) -> None:
    source = build_model(load_preset("tiny"))
    save_model(tmp_path / "a.safetensors", source)
    start = ("model=tiny", f"init_from={tmp_path / 'a.safetensors'}", f"optimizer.name={optimizer}")
    config = compose(*start, "warm_start.layer_decay=0.5", "warm_start.projection_steps=2")
    model = initial_model(config)
    made = make_optimizer(model, config)
    names = {id(p): n for n, p in model.named_parameters()}
    factor = {names[id(p)]: group["lr_factor"] for group in made.param_groups for p in group["params"]}
    assert factor.keys() == dict(model.named_parameters()).keys()
    blocks = len(model.image.trunk.blocks)
    assert factor["image.projection.weight"] == factor["image.trunk.norm.weight"] == factor["logit_scale"] == 1
    assert factor[f"image.trunk.blocks.{blocks - 1}.mlp.fc1.weight"] == 0.5
    assert factor["image.trunk.blocks.0.norm1.bias"] == 0.5**blocks
    assert factor["image.trunk.patch_embed.proj.weight"] == 0.5 ** (blocks + 1)
    assert factor["text.token_embedding.weight"] == 0.5 ** (len(model.text.blocks) + 1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids, lengths = tokenize(["a red dog", "two cats"], 16)
    for step in range(3):
        set_lr(made.param_groups, 0.01, step)
        encoded = model(torch.randn(2, 3, model.image_size, model.image_size), ids, lengths)
        assert isinstance(encoded.text, TextFeatures)
        (encoded.logit_scale * encoded.image[0] @ encoded.text.tokens.T).square().sum().backward()
        made.step()
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        if step < 2:
            assert moved <= {"image.projection.weight", "text.projection.weight", "logit_scale"}
    assert "image.trunk.blocks.0.mlp.fc1.weight" in moved and "text.projection.weight" in moved


def test_without_a_model_to_start_from_there_is_no_warm_start() -> None:
    with pytest.raises(UserError, match=r"warm_start is for a training that starts from a model"):
        compose("model=tiny", "warm_start.layer_decay=0.7")
    with pytest.raises(UserError, match=r"warm_start\.layer_decay=1\.5 must be above 0 and at most 1"):
        compose("model=tiny", "warm_start.layer_decay=1.5")
