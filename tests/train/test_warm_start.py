"""A model of another project computes the same in our towers; what cannot be converted is refused in one sentence."""

import dataclasses
from pathlib import Path

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F

from filip.common.errors import UserError
from filip.images.pixels import CLIP_MEAN, CLIP_STD
from filip.models import DualEncoder, ModelConfig, TextFeatures, build_model, load_preset, save_model
from filip.text.tokenizer import tokenize
from filip.train.loop import initial_model
from filip.train.warm_start import content_hash, load_initial
from tests.support.clips import open_clip_file, shaken
from tests.support.training import compose

CAPTIONS = ["a photo of a cat", "two dogs!", "x " * 90]


def pooled() -> ModelConfig:
    return ModelConfig(interaction="pooled")


def pixels(n: int = 2, size: int = 224) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def assert_same(ours: DualEncoder, image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> None:
    ids, lengths = tokenize(CAPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(pixels()), F.normalize(image, dim=-1), atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.encode_text(ids, lengths), F.normalize(text, dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.scale().squeeze(), scale)


@pytest.mark.parametrize(
    ("shape", "quick_gelu", "steps"),
    [
        ("tiny", False, 0),
        ("tiny", True, 3),
        pytest.param("B-32", True, 0, marks=pytest.mark.slow),  # hundreds of megabytes each
        pytest.param("L-14", True, 0, marks=pytest.mark.slow),
    ],
)
def test_open_clips_pooled_vectors_are_ours(shape: str, quick_gelu: bool, steps: int, tmp_path: Path) -> None:
    name = open_clip_file(tmp_path, quick_gelu, shape, steps)
    architecture, file = name.split(":")
    theirs = open_clip.create_model(architecture, pretrained=file).eval()
    ours = load_initial(f"open_clip:{name}:{'quickgelu' if quick_gelu else 'gelu'}", pooled()).eval()
    padded = open_clip.get_tokenizer(architecture)(CAPTIONS)
    with torch.no_grad():
        assert_same(ours, theirs.encode_image(pixels()), theirs.encode_text(padded), theirs.logit_scale.exp())


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
        "vit_pe_core_tiny_patch16_384",  # whose patches have no bias
        pytest.param("vit_base_patch16_siglip_224", marks=pytest.mark.slow),  # only large ones exist
    ],
)
def test_timms_tower_sees_the_pixels_that_it_was_trained_with(name: str, tmp_path: Path) -> None:
    """These timm models normalise with 0.5; ours gets CLIP's normalisation of the same image."""
    torch.manual_seed(0)
    theirs = shaken(timm.create_model(name))
    torch.save(theirs.state_dict(), tmp_path / "vit.pt")
    config = load_preset("tiny")
    ours = load_initial(f"timm:{name}:{tmp_path / 'vit.pt'}", config).eval()
    side = ours.image_size
    image = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(2))
    as_clip = (image - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    with torch.no_grad():
        expected = theirs.forward_features((image - 0.5) / 0.5)
        torch.testing.assert_close(ours.image.trunk(as_clip), expected, atol=2e-5, rtol=1e-4)
    assert ours.image.trunk.norm.eps == theirs.norm.eps and ours.config.text == config.text


def test_the_weights_are_known_by_content_wherever_they_lie(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.pt").write_bytes(b"one")
    assert content_hash(f"timm:x:{tmp_path}/a/m.pt") == content_hash(f"timm:x:{tmp_path}/b/m.pt")
    assert content_hash("open_clip:ViT-B-32:one") != content_hash("open_clip:ViT-B-32:two")
    (tmp_path / "b" / "m.pt").write_bytes(b"two")
    assert content_hash(f"timm:x:{tmp_path}/a/m.pt") != content_hash(f"timm:x:{tmp_path}/b/m.pt")


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


def test_a_training_starts_from_it_with_its_own_interaction_and_size(tmp_path: Path) -> None:
    config = compose(f"init_from=open_clip:{open_clip_file(tmp_path, True)}:quickgelu", "image_size=64")
    config.model.cls_in_interaction = True
    model = initial_model(config)
    assert model.training and model.image_size == 64 and model.image.grid == (2, 2)
    assert config.model.interaction == "token_wise" and config.model.cls_in_interaction
    assert config.model.embed_dim == 32 and config.model.image.activation == "quick_gelu"
    assert config.model == model.config and dataclasses.asdict(config)["init_from"].startswith("open_clip:")


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
