"""A saved model is one file that needs nothing else."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from filip.common.errors import UserError
from filip.models import build_model, config_from_dict, load_model, load_preset, preset_names, read_extra, save_model
from filip.models.weights import save_compact, taught
from filip.text.tokenizer import tokenize


def test_round_trip(tmp_path: Path) -> None:
    config = load_preset("tiny")
    config.embed_dim, config.cls_in_interaction = 24, True
    model = build_model(config).eval()
    save_model(tmp_path / "new" / "m.safetensors", model, {"run": "r", "step": 3})
    loaded = load_model(tmp_path / "new" / "m.safetensors")
    assert loaded.config == config
    assert not loaded.training
    assert read_extra(tmp_path / "new" / "m.safetensors") == {"run": "r", "step": 3}
    ids, lengths = tokenize(["a cat", "a longer caption"])
    with torch.no_grad():
        a, b = model(torch.ones(2, 3, 32, 32), ids, lengths), loaded(torch.ones(2, 3, 32, 32), ids, lengths)
    assert torch.equal(a.image, b.image)
    assert torch.equal(a.text.tokens, b.text.tokens)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["m.safetensors"]


def test_half_precision_is_saved_as_float32(tmp_path: Path) -> None:
    model = build_model(load_preset("tiny")).half()
    save_model(tmp_path / "m.safetensors", model)
    with safe_open(str(tmp_path / "m.safetensors"), "pt") as file:
        assert {file.get_tensor(k).dtype for k in file.keys()} == {torch.float32}  # noqa: SIM118
        assert json.loads(file.metadata()["config"])["name"] == "tiny"


def test_every_preset_builds_and_survives_yaml_and_hydra() -> None:
    assert {"tiny", "demo", "small", "base", "large"} <= set(preset_names())
    for name in preset_names():
        config = load_preset(name)
        assert config.name == name
        assert config_from_dict(yaml.safe_load(yaml.safe_dump(dataclasses.asdict(config)))) == config
        with torch.device("meta"):
            assert all(p.is_meta for p in build_model(config).parameters())


def test_unknown_keys_and_presets_are_named() -> None:
    with pytest.raises(UserError, match="'widht'"):
        config_from_dict({"image": {"widht": 3}})
    with pytest.raises(UserError, match=r"'huge'.*base"):
        load_preset("huge")


def test_a_compact_file_leaves_out_what_no_training_has_touched(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(load_preset("tiny")).eval()
    seen, lengths = tokenize(["a red cat", "two zeppelins"])
    with torch.no_grad():
        model.text.token_embedding.weight *= 0.7  # weight decay
        model.text.token_embedding.weight[seen.unique()] *= 3
    save_model(tmp_path / "whole.safetensors", model)
    left_out = save_compact(tmp_path / "compact.safetensors", model, {"run": "r"})
    whole, compact = (tmp_path / f"{name}.safetensors" for name in ("whole", "compact"))
    assert compact.stat().st_size < whole.stat().st_size / 3
    loaded = load_model(compact)
    assert read_extra(compact) == {"run": "r"} and loaded.text.token_embedding.weight.dtype == torch.float32
    rows = loaded.text.token_embedding.weight.abs().sum(1).nonzero()[:, 0]
    assert set(seen.unique().tolist()) <= set(rows.tolist()) and len(rows) < 30, "and next to nothing else has a value"
    assert left_out == len(loaded.text.token_embedding.weight) - len(rows)
    assert save_compact(tmp_path / "again.safetensors", loaded) == 0
    assert torch.equal(taught(loaded.text.token_embedding.weight).nonzero()[:, 0], rows)
    with torch.no_grad():
        expected = model.encode_text(seen, lengths).tokens
        torch.testing.assert_close(loaded.encode_text(seen, lengths).tokens, expected, atol=2e-3, rtol=0)
    norms = torch.rand(100, 1) + 0.2
    assert taught(norms * torch.randn(100, 64)).all(), "rows that are not alike have all been trained"
