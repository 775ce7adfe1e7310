"""A model of another project computes the same in our towers; what cannot be converted is refused in one sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from filip.errors import UserError
from filip.models import (
    DualEncoder,
    ModelConfig,
    TextFeatures,
    build_model,
    load_model,
    load_preset,
    save_model,
)
from filip.pixels import CLIP_MEAN, CLIP_STD
from filip.tokenizer import EOS, tokenize
from filip.train.engine import make_optimizer
from filip.train.loop import initial_model
from filip.train.param_groups import set_lr
from filip.train.warm_start import content_hash, load_initial
from tests.support.training import compose

CAPTIONS = ["a photo of a cat", "two dogs!", "x " * 90]
# patch, image width, heads, text width, embed_dim: CLIP's shapes, two blocks deep, and one for what needs none of them
SHAPES = {
    "tiny": (32, 64, 1, 64, 32),
    "B-32": (32, 768, 12, 512, 512),
    "B-16": (16, 768, 12, 512, 512),
    "L-14": (14, 1024, 16, 768, 768),
}


def pooled() -> ModelConfig:
    return ModelConfig(interaction="pooled")


def pixels(n: int = 2, size: int = 224) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def shaken(model: Any) -> Any:
    """With norms and biases that are not 1 and 0, as after a training."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def open_clip_file(folder: Path, quick_gelu: bool = False, shape: str = "tiny", **changes: Any) -> str:
    """``open_clip:ARCH:FILE`` of a random model that open_clip itself built and saved."""
    patch, width, heads, text_width, embed_dim = SHAPES[shape]
    config: dict[str, Any] = {
        "embed_dim": embed_dim,
        "quick_gelu": quick_gelu,
        "vision_cfg": {
            "image_size": 224, "layers": 2, "width": width, "patch_size": patch, "head_width": width // heads,
            **changes.get("vision_cfg", {}),
        },
        "text_cfg": {
            "context_length": 77, "vocab_size": 49408, "width": text_width, "heads": text_width // 64, "layers": 2,
            **changes.get("text_cfg", {}),
        },
    }  # fmt: skip
    architecture = f"{folder.name}-{shape}-{len(list(folder.iterdir()))}"
    (folder / architecture).mkdir()
    (folder / architecture / f"{architecture}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / architecture)
    torch.manual_seed(0)
    model = shaken(open_clip.create_model(architecture))
    file = folder / architecture / "weights.pt"
    torch.save(model.state_dict(), file)
    return f"{architecture}:{file}"


def hf_folder(folder: Path, shape: str = "tiny", activation: str = "quick_gelu", **changes: Any) -> CLIPModel:
    """A random CLIP that transformers itself saved, with its processor."""
    patch, width, heads, text_width, embed_dim = SHAPES[shape]
    torch.manual_seed(0)
    config = CLIPConfig(
        vision_config={
            "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 2, "hidden_act": activation,
            "num_attention_heads": heads, "image_size": 224, "patch_size": patch, **changes,
        },
        text_config={
            "hidden_size": text_width, "intermediate_size": 4 * text_width, "num_hidden_layers": 2,
            "num_attention_heads": text_width // 64, "hidden_act": activation,
        },
        projection_dim=embed_dim,
    )  # fmt: skip
    model = shaken(CLIPModel(config))
    model.save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return model


def siglip_folder(
    folder: Path, width: int = 64, mlp: int = 256, patch: int = 32, **changes: Any
) -> SiglipModel:
    """A random SigLIP that transformers itself saved, both towers and its processor."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": 2, "num_attention_heads": width // 32,
        "image_size": 224, "patch_size": patch, **changes,
    }  # fmt: skip
    text = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
        "projection_size": width,
    }  # fmt: skip
    model = shaken(SiglipModel(SiglipConfig(vision_config=vision, text_config=text)))
    model.save_pretrained(folder)
    SiglipImageProcessor().save_pretrained(folder)
    return model


def assert_same(ours: DualEncoder, image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> None:
    ids, lengths = tokenize(CAPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(pixels()), F.normalize(image, dim=-1), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            ours.encode_text(ids, lengths), F.normalize(text, dim=-1), atol=1e-5, rtol=0
        )
    torch.testing.assert_close(ours.scale().squeeze(), scale)


@pytest.mark.parametrize(
    ("shape", "quick_gelu"),
    [
        ("tiny", False),
        pytest.param("B-32", True, marks=pytest.mark.slow),  # hundreds of megabytes each
        pytest.param("B-16", False, marks=pytest.mark.slow),
        pytest.param("L-14", True, marks=pytest.mark.slow),
    ],
)
def test_open_clips_pooled_vectors_are_ours(shape: str, quick_gelu: bool, tmp_path: Path) -> None:
    name = open_clip_file(tmp_path, quick_gelu, shape)
    architecture, file = name.split(":")
    theirs = open_clip.create_model(architecture, pretrained=file).eval()
    ours = load_initial(f"open_clip:{name}:{'quickgelu' if quick_gelu else 'gelu'}", pooled()).eval()
    padded = open_clip.get_tokenizer(architecture)(CAPTIONS)
    with torch.no_grad():
        assert_same(ours, theirs.encode_image(pixels()), theirs.encode_text(padded), theirs.logit_scale.exp())


@pytest.mark.parametrize(
    ("shape", "activation"),
    [
        ("tiny", "quick_gelu"),
        pytest.param("B-32", "quick_gelu", marks=pytest.mark.slow),
        pytest.param("B-16", "gelu", marks=pytest.mark.slow),
        pytest.param("L-14", "quick_gelu", marks=pytest.mark.slow),
    ],
)
def test_the_pooled_vectors_of_transformers_are_ours(shape: str, activation: str, tmp_path: Path) -> None:
    theirs = hf_folder(tmp_path / "clip", shape, activation)
    ours = load_initial(f"hf:{tmp_path / 'clip'}", pooled()).eval()
    ids, _ = tokenize(CAPTIONS)
    ids = F.pad(ids, (0, 77 - ids.shape[1]), value=EOS)
    with torch.no_grad():
        image = theirs.visual_projection(theirs.vision_model(pixels()).pooler_output)
        text = theirs.text_projection(theirs.text_model(ids).pooler_output)
        assert_same(ours, image, text, theirs.logit_scale.exp())


def test_every_token_starts_from_the_sources_own_projection(tmp_path: Path) -> None:
    """[CLS] and [EOS] of a token-wise model are the source's pooled vectors: all tokens share that matrix."""
    name = f"open_clip:{open_clip_file(tmp_path)}:gelu"
    baseline = load_initial(name, pooled()).eval()
    tokens = load_initial(name, ModelConfig(cls_in_interaction=True)).eval()
    ids, lengths = tokenize(CAPTIONS)
    with torch.no_grad():
        image, text = tokens.encode_image(pixels()), tokens.encode_text(ids, lengths)
        assert isinstance(text, TextFeatures)
        assert image.shape == (2, 50, 32) and tokens.config.embed_dim == 32
        torch.testing.assert_close(image[:, 0], baseline.encode_image(pixels()))
        torch.testing.assert_close(text.tokens[lengths.cumsum(0) - 1], baseline.encode_text(ids, lengths))


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        pytest.param("vit_base_patch16_siglip_224", marks=pytest.mark.slow),  # of which only large ones exist
    ],
)
def test_timms_tower_sees_the_pixels_that_it_was_trained_with(name: str, tmp_path: Path) -> None:
    """These of timm normalise with 0.5; ours gets CLIP's normalisation of the same image."""
    torch.manual_seed(0)
    theirs = shaken(timm.create_model(name))
    torch.save(theirs.state_dict(), tmp_path / "vit.pt")
    config = load_preset("tiny")
    ours = load_initial(f"timm:{name}:{tmp_path / 'vit.pt'}", config).eval()
    image = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    as_clip = (image - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    with torch.no_grad():
        expected = theirs.forward_features((image - 0.5) / 0.5)
        torch.testing.assert_close(ours.image.trunk(as_clip), expected, atol=2e-5, rtol=1e-4)
    assert ours.image.trunk.norm.eps == 1e-6 and ours.config.text == config.text


@pytest.mark.parametrize(
    ("width", "mlp", "patch"),
    [(64, 256, 32), (96, 359, 14)],
    ids=["tiny", "as_so400m"],  # which has an MLP of 3.74 widths
)
def test_the_patches_of_a_siglip_are_ours(width: int, mlp: int, patch: int, tmp_path: Path) -> None:
    """It normalises with 0.5; ours gets CLIP's normalisation of the same image."""
    theirs = siglip_folder(tmp_path / "siglip", width, mlp, patch)
    theirs.vision_model.save_pretrained(tmp_path / "tower")
    SiglipImageProcessor().save_pretrained(tmp_path / "tower")
    image = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    as_clip = (image - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    config = load_preset("tiny")
    for folder in ("siglip", "tower"):  # both towers, or the vision tower alone
        ours = load_initial(f"hf:{tmp_path / folder}", config).eval()
        with torch.no_grad():
            expected = theirs.vision_model((image - 0.5) / 0.5).last_hidden_state
            torch.testing.assert_close(ours.image.trunk(as_clip), expected, atol=2e-5, rtol=1e-4)
    assert ours.config.text == config.text and ours.config.embed_dim == config.embed_dim
    save_model(tmp_path / "ours.safetensors", ours)
    again = load_model(tmp_path / "ours.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(as_clip), ours.encode_image(as_clip))


def test_a_siglip_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    siglip_folder(tmp_path / "good")
    siglip_folder(tmp_path / "epsilon", layer_norm_eps=1e-5)
    siglip_folder(tmp_path / "activation", hidden_act="relu")
    siglip_folder(tmp_path / "processor")
    (tmp_path / "processor" / "preprocessor_config.json").unlink()
    siglip_folder(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    for name, reason in {
        "epsilon": "layer_norm_eps=1e-05",
        "activation": "hidden_act='relu'",
        "processor": "no image processor",
        "cut": "cannot be loaded",
    }.items():
        with pytest.raises(UserError, match=reason):
            load_initial(f"hf:{tmp_path / name}", load_preset("tiny"))
    with pytest.raises(UserError, match=r"model.interaction=pooled needs a \[CLS\] token"):
        load_initial(f"hf:{tmp_path / 'good'}", pooled())


def test_a_training_starts_from_it_with_its_own_interaction_and_size(tmp_path: Path) -> None:
    hf_folder(tmp_path / "clip")
    config = compose(f"init_from=hf:{tmp_path / 'clip'}", "model.cls_in_interaction=true", "image_size=64")
    model = initial_model(config)
    assert model.training and model.image_size == 64 and model.image.grid == (2, 2)
    assert config.model.interaction == "token_wise" and config.model.cls_in_interaction
    assert config.model.embed_dim == 32 and config.model.image.activation == "quick_gelu"
    assert config.model == model.config and dataclasses.asdict(config)["init_from"].startswith("hf:")


def test_the_weights_are_known_by_content_wherever_they_lie(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.pt").write_bytes(b"one")
        (tmp_path / name / "model.safetensors").write_bytes(b"one")
    assert content_hash(f"timm:x:{tmp_path}/a/m.pt") == content_hash(f"timm:x:{tmp_path}/b/m.pt")
    assert content_hash(f"hf:{tmp_path}/a") == content_hash(f"hf:{tmp_path}/b")
    assert content_hash("open_clip:ViT-B-32:one") != content_hash("open_clip:ViT-B-32:two")
    (tmp_path / "b" / "m.pt").write_bytes(b"two")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"two")
    assert content_hash(f"timm:x:{tmp_path}/a/m.pt") != content_hash(f"timm:x:{tmp_path}/b/m.pt")
    assert content_hash(f"hf:{tmp_path}/a") != content_hash(f"hf:{tmp_path}/b")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing.safetensors", "no such file"),
        ("open_clip:", "names no model"),
        ("open_clip:ViT-B-33:x", "no architecture 'ViT-B-33'"),
        ("open_clip:ViT-B-32", "names no weights"),
        ("open_clip:ViT-B-32:no_such_tag", "neither a file nor a tag"),
        (
            "open_clip:ViT-B-16-SigLIP:webli",
            "vision tower alone may do as init_from=timm:vit_base_patch16_siglip_224",
        ),
        ("open_clip:RN50:openai", r"layers=\[3"),
        ("hf:no/such/folder/here", "no model of transformers"),
        ("timm:vit_base_patch33", "no model 'vit_base_patch33'"),
        ("timm:vit_tiny_patch16_224:no.pt", "no file no.pt"),
    ],
)
def test_names_that_lead_nowhere_are_refused(name: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        compose(f"init_from={name}")
        load_initial(name, pooled())


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    good = open_clip_file(tmp_path)
    architecture, file = good.split(":")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(Path(file).read_bytes()[:100_000])
    vocabulary = open_clip_file(tmp_path, text_cfg={"vocab_size": 50000})
    other = open_clip_file(tmp_path, vision_cfg={"no_ln_pre": True})
    for name, reason in (
        (good, "does not say which activation"),
        (f"{architecture}:{cut}:gelu", "cannot load"),
        (f"ViT-B-16:{file}:gelu", "cannot load"),
        (f"{vocabulary}:gelu", "50000 word vectors"),
        (f"{other}:gelu", "vision_cfg.no_ln_pre=True"),
    ):
        with pytest.raises(UserError, match=reason):
            load_initial(f"open_clip:{name}", pooled())


def test_folders_of_transformers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    hf_folder(tmp_path / "epsilon", layer_norm_eps=1e-6)
    hf_folder(tmp_path / "activation", activation="gelu_new")
    hf_folder(tmp_path / "processor")
    (tmp_path / "processor" / "preprocessor_config.json").unlink()
    hf_folder(tmp_path / "mean")
    CLIPImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(tmp_path / "mean")
    hf_folder(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    for name, reason in {
        "epsilon": "layer_norm_eps=1e-06",
        "activation": "hidden_act='gelu_new'",
        "processor": "no image processor",
        "mean": "normalises its pixels with mean",
        "cut": "cannot be loaded",
        "other": "type 'siglip2'",
    }.items():
        with pytest.raises(UserError, match=reason):
            load_initial(f"hf:{tmp_path / name}", pooled())


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
    assert (
        model.config.interaction == config.model.interaction == "token_wise"
        and config.loss["token_wise"] == 1
    )
    encoded = model(pixels, ids, lengths, pooled=True)
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
    assert (
        factor["image.projection.weight"] == factor["image.trunk.norm.weight"] == factor["logit_scale"] == 1
    )
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
