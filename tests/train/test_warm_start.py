"""A training that starts from a model goes on with its weights; what of it learns, how fast and from which step on."""

import dataclasses
from pathlib import Path

import pytest
import torch

from filip.errors import UserError
from filip.models import build_model, load_preset, save_model
from filip.tokenizer import tokenize
from filip.train.loop import initial_model
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


def test_without_a_model_to_start_from_there_is_no_warm_start() -> None:
    with pytest.raises(UserError, match=r"warm_start is for a training that starts from a model"):
        compose("model=tiny", "warm_start.image=frozen")
