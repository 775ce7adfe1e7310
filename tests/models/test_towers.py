"""The towers are CLIP's: shapes, counts and numbers against open_clip's own models."""

import dataclasses
from typing import Any

import open_clip
import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from filip.common.errors import UserError
from filip.models import (
    DualEncoder,
    ImageTowerConfig,
    ModelConfig,
    TextFeatures,
    TextTowerConfig,
    build_model,
    load_preset,
)
from filip.models.open_clip_names import from_open_clip, open_clip_names
from filip.text.tokenizer import tokenize


def name_pairs(model: DualEncoder) -> dict[str, str]:
    """Return every parameter of ours and its counterpart in open_clip.CLIP."""
    return open_clip_names(model.image.depth, len(model.text.blocks))


def small_pair(activation: str = "gelu", **changes: Any) -> tuple[DualEncoder, open_clip.CLIP]:
    """Make the same small CLIP twice, ours with open_clip's weights."""
    torch.manual_seed(0)
    theirs = open_clip.CLIP(
        embed_dim=24,
        vision_cfg={"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 16},
        text_cfg={"width": 64, "layers": 3, "heads": 4, "context_length": 20, "vocab_size": 49408},
        quick_gelu=activation == "quick_gelu",
    ).eval()
    ours = build_model(small_config(activation, **changes)).eval()
    ours.load_state_dict(from_open_clip(theirs.state_dict(), 2, 3))
    return ours, theirs


def small_config(activation: str = "gelu", **changes: Any) -> ModelConfig:
    return ModelConfig(
        image=ImageTowerConfig(image_size=64, patch_size=16, width=64, layers=2, heads=4, activation=activation),
        text=TextTowerConfig(width=64, layers=3, heads=4, context_length=20, activation=activation),
        embed_dim=24,
        **changes,
    )


def some_pixels(n: int = 3, size: int = 64) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("preset", "reference"), [("base", "ViT-B-32"), ("large", "ViT-L-14")])
def test_parameters_are_those_of_clip(preset: str, reference: str) -> None:
    """Compare layer by layer; only the two projections differ, in their number of outputs."""
    with torch.device("meta"):
        ours = build_model(load_preset(preset))
        reference_config = open_clip.get_model_config(reference)
        theirs = open_clip.CLIP(
            **{k: reference_config[k] for k in ("embed_dim", "vision_cfg", "text_cfg")}, output_dict=False
        )
    mine, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    pairs = name_pairs(ours)
    assert set(pairs) == set(mine)
    assert set(pairs.values()) == set(other)
    for a, b in pairs.items():
        if a.endswith("projection.weight"):
            assert mine[a].shape == (256, other[b].shape[0])
        else:
            assert mine[a].squeeze().shape == other[b].squeeze().shape, a
    widths = ours.config.image.width or ours.image.trunk.embed_dim, ours.config.text.width
    fewer = sum(widths) * (reference_config["embed_dim"] - 256)
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters()) - fewer


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_global_embeddings_equal_open_clip(activation: str) -> None:
    ours, theirs = small_pair(activation, interaction="pooled")
    ids, lengths = tokenize(["a photo of a cat", "two dogs!", "x " * 50], context_length=20)
    padded = torch.nn.functional.pad(ids, (0, 20 - ids.shape[1]))
    with torch.no_grad():
        image, expected_image = ours.encode_image(some_pixels()), theirs.encode_image(some_pixels(), True)
        text, expected_text = ours.encode_text(ids, lengths), theirs.encode_text(padded, True)
    torch.testing.assert_close(image, expected_image, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(text, expected_text, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cls", [False, True])
def test_token_embeddings_equal_open_clips_token_states(cls: bool) -> None:
    """All tokens: final LayerNorm, projection, each to unit length; text packed without padding."""
    ours, theirs = small_pair(cls_in_interaction=cls)
    captions = ["a photo of a cat", "two dogs!", "", "x " * 50]
    ids, lengths = tokenize(captions, context_length=20)
    with torch.no_grad():
        image, text = ours.encode_image(some_pixels()), ours.encode_text(ids, lengths)
        grid = theirs.visual.forward_intermediates(
            some_pixels(), indices=1, normalize_intermediates=True, output_fmt="NLC", output_extra_tokens=True
        )
        states = grid["image_intermediates"][-1]
        if cls:
            states = torch.cat([grid["image_intermediates_prefix"][-1], states], dim=1)
        expected_image = torch.nn.functional.normalize(states @ theirs.visual.proj, dim=-1)
        x = theirs.token_embedding(ids) + theirs.positional_embedding[: ids.shape[1]]
        x = theirs.transformer(x, attn_mask=theirs.attn_mask[: ids.shape[1], : ids.shape[1]])
        x = torch.nn.functional.normalize(theirs.ln_final(x) @ theirs.text_projection, dim=-1)
    assert image.shape == (3, 16 + cls, 24)
    torch.testing.assert_close(image, expected_image, atol=1e-5, rtol=1e-4)
    assert isinstance(text, TextFeatures)
    assert text.lengths.tolist() == [7, 5, 2, 20]
    expected_text = torch.cat([x[i, :n] for i, n in enumerate(lengths.tolist())])
    torch.testing.assert_close(text.tokens, expected_text, atol=1e-5, rtol=1e-4)


def test_padding_gets_no_gradient() -> None:
    """Padding has the id of '!', whose embedding must not learn from it."""
    model = build_model(load_preset("tiny"))
    ids, lengths = tokenize(["a cat", "a somewhat longer caption of a dog"])
    model.encode_text(ids, lengths).tokens.sum().backward()
    gradient = model.text.token_embedding.weight.grad
    assert not gradient[0].any()
    assert gradient[ids[0, 1]].any()


@pytest.mark.parametrize("half", ["autocast", "parameters"])
def test_embeddings_are_float32_of_unit_length_in_half_precision_too(half: str) -> None:
    model = build_model(load_preset("tiny")).eval()
    pixels = some_pixels(2, 32)
    if half == "parameters":
        model, pixels = model.bfloat16(), pixels.bfloat16()
    ids, lengths = tokenize(["a cat", "a longer caption"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half == "autocast"):
        encoded = model(pixels, ids, lengths)
    for x in (encoded.image, encoded.text.tokens):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.norm(dim=-1), torch.ones(x.shape[:-1]))
    assert encoded.logit_scale.dtype == torch.float32


def test_initialisation_is_clips() -> None:
    """Compare each weight's standard deviation with open_clip's own initialisation, seed by seed independent."""
    torch.manual_seed(3)
    theirs = dict(
        open_clip.CLIP(
            embed_dim=64,
            vision_cfg={"image_size": 96, "patch_size": 16, "width": 192, "layers": 2, "head_width": 64},
            text_cfg={"width": 128, "layers": 4, "heads": 4, "context_length": 77, "vocab_size": 49408},
        ).named_parameters()
    )
    config = small_config()
    config.image = ImageTowerConfig(image_size=96, patch_size=16, width=192, layers=2, heads=3)
    config.text = TextTowerConfig(width=128, layers=4, heads=4)
    config.embed_dim = 64
    ours = build_model(config)
    mine = dict(ours.named_parameters())
    for a, b in name_pairs(ours).items():
        if mine[a].numel() < 64 * 77:
            continue  # too few numbers to estimate a deviation from
        assert mine[a].std().item() == pytest.approx(theirs[b].std().item(), rel=0.06), a
        assert abs(mine[a].mean().item()) < 0.1 * mine[a].std().item(), a
    for a, b in name_pairs(ours).items():
        if a.endswith("bias"):
            assert (mine[a].abs().max() == 0) == (theirs[b].abs().max() == 0), a
    assert mine["logit_scale"].shape == (1,)
    assert ours.scale().item() == pytest.approx(1 / 0.07)


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    config = small_config()
    ids, lengths = tokenize(["a photo of a cat", "two dogs!", "x " * 50], context_length=20)
    gradients = []
    for checkpointing in (False, True):
        config.gradient_checkpointing = checkpointing
        torch.manual_seed(0)
        model = build_model(config)
        saved = 0

        def count(x: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            out = model(some_pixels(), ids, lengths)
        (out.image.sum() + out.text.tokens.sum()).backward()
        gradients.append((saved, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (all_saved, expected), (few_saved, actual) = gradients
    assert few_saved < all_saved / 2
    assert set(expected) == set(actual)
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "side", "prefix"),
    [
        ("vit_small_patch14_reg4_dinov2", 56, 5),  # registers, LayerScale and no class position
        ("vit_small_patch16_dinov3", 64, 5),  # rotary positions
        ("vit_pe_core_tiny_patch16_384", 64, 1),  # both kinds of positions
        ("vit_base_patch16_siglip_224", 64, 0),
    ],
)
def test_any_vit_of_timm_gives_its_patches(name: str, side: int, prefix: int) -> None:
    """[CLS] and registers are not patches, and a tower that was made for another size is as timm makes it."""
    sizes = {"depth": 2, "embed_dim": 96, "num_heads": 2}
    config = small_config()
    config.image = ImageTowerConfig(timm=name, image_size=2 * side, layers=2, width=96, heads=2)
    model = build_model(config).eval()
    model.resize_images(side)
    with torch.no_grad():
        tokens = model.encode_image(some_pixels(2, side))
        trunk = timm.create_model(name, img_size=side, **sizes, num_classes=0, global_pool="").eval()
        trunk.load_state_dict(model.image.trunk.state_dict())
        states = trunk.forward_features(some_pixels(2, side))[:, prefix:]
    expected = torch.nn.functional.normalize(states @ model.image.projection.weight.T, dim=-1)
    assert tokens.shape == (2, 16, 24) and model.image.has_cls == (prefix > 0)
    torch.testing.assert_close(tokens, expected)


def test_resized_positions_are_timms() -> None:
    model = build_model(small_config()).eval()
    before = model.image.trunk.pos_embed.detach().clone()
    model.resize_images(112)
    expected = resample_abs_pos_embed(before, [7, 7], [4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(model.image.trunk.pos_embed.detach(), expected)
    assert model.image.grid == (7, 7)
    assert model.image_size == 112
    with torch.no_grad():
        assert model.encode_image(some_pixels(1, 112)).shape == (1, 49, 24)
    with pytest.raises(UserError, match="96 or 112"):
        model.resize_images(100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": ImageTowerConfig(timm="vit_base_patch33")}, "vit_base_patch33"),
        ({"image": ImageTowerConfig(timm="swin_tiny_patch4_window7_224", activation=None)}, "DINOv3, PE-Core"),
    ],
)
def test_impossible_models_are_refused_in_words(change: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=message):
        build_model(dataclasses.replace(ModelConfig(), **change))
