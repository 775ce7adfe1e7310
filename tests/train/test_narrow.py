"""A trained model with a narrower embedding: what fits into fewer channels stays, and the recall it costs is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import filip
from filip.errors import UserError
from filip.eval.scorer import Texts
from filip.models import DualEncoder, build_model, load_model, load_preset, read_extra, save_model
from filip.train.loop import initial_model
from filip.train.narrow import Narrow, Pairs, apply, fit, narrow
from tests.eval.miniature import picture
from tests.support.clips import hf_folder
from tests.support.training import compose

CAPTIONS = ["a red dog", "two black cats", "a lamp", "the sea at night", "a tall tree", "three cups of tea"]


def tiny(interaction: str, directions: int | None = None) -> DualEncoder:
    """Make a model of random weights; with ``directions`` all embeddings lie in a space of that many dimensions."""
    torch.manual_seed(1)
    config = load_preset("tiny")
    config.interaction = interaction
    model = build_model(config)
    if directions is not None:
        basis = torch.linalg.qr(torch.randn(config.embed_dim, directions))[0]
        with torch.no_grad():
            for tower in (model.image, model.text):
                tower.projection.weight.copy_(basis @ basis.T @ tower.projection.weight)
    return model.eval()


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for n, caption in enumerate(CAPTIONS * 3):
        picture(n, 40).save(folder / f"{n:02}.png")
        (folder / f"{n:02}.txt").write_text(f"{caption} {n}")
    return folder


@pytest.mark.parametrize("interaction", ["token_wise", "pooled"])
def test_embeddings_that_fit_into_fewer_channels_keep_their_similarities(
    interaction: str, tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "wide.safetensors", tiny(interaction, directions=8))
    out = tmp_path / "narrow.safetensors"
    narrow(Narrow(model=str(tmp_path / "wide.safetensors"), embed_dim=8, data=str(pairs), out=str(out), device="cpu"))
    images = [str(file) for file in sorted(pairs.glob("*.png"))]
    wide, small = (filip.load(str(tmp_path / f"{name}.safetensors"), device="cpu") for name in ("wide", "narrow"))
    assert small.encode_images(images).shape[-1] == 8
    for a, b in zip(wide.similarity(images, CAPTIONS), small.similarity(images, CAPTIONS), strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
    said = capsys.readouterr().err
    kinds = ["token-wise"] if interaction == "token_wise" else ["token-wise", "pooled"]
    recall = read_extra(out)["recall"]
    assert sorted(recall) == sorted(kinds)
    for kind in kinds:
        same = r"i2t R@1/10 (.*) to \1 %; t2i R@1/10 (.*) to \2 %$"
        line = rf"^{kind}, \d+ to 8 channels, 9 pictures not fitted to: {same}"
        assert re.search(line, said, re.MULTILINE), said
        assert recall[kind]["before"] == recall[kind]["after"]
    start = initial_model(compose(f"init_from={out}", "warm_start.interaction=token_wise"))
    assert start.config.embed_dim == 8 and start.config.interaction == "token_wise"


def test_the_saved_model_does_what_its_recall_was_measured_with() -> None:
    model, generator = tiny("pooled"), torch.Generator().manual_seed(2)
    pixels = torch.randn(6, 3, model.image_size, model.image_size, generator=generator)
    with torch.no_grad():
        before = Pairs(model.encode_image(pixels), Texts(torch.eye(model.config.embed_dim)[:6], None), torch.arange(6))
        directions = fit([before], 5)
        torch.testing.assert_close(directions @ directions.T, torch.eye(5), atol=1e-5, rtol=0)
        apply(model, directions)
        torch.testing.assert_close(model.encode_image(pixels), before.mapped(directions).images, atol=1e-5, rtol=0)
    assert model.config.embed_dim == 5


def test_the_fit_loses_less_than_as_many_channels_taken_as_they_are() -> None:
    generator = torch.Generator().manual_seed(3)
    spread = torch.randn(200, 16, generator=generator) * torch.logspace(0, -2, 16)
    mixed = torch.nn.functional.normalize(spread @ torch.linalg.qr(torch.randn(16, 16, generator=generator))[0], dim=-1)
    sample = Pairs(mixed[:100], Texts(mixed[100:], None), torch.arange(100))
    directions = fit([sample.part(torch.arange(100) % 2 == 0)], 6)
    held = sample.part(torch.arange(100) % 2 == 1)
    exact = held.images @ held.texts.values.T
    fitted = held.mapped(directions)
    taken = held.mapped(torch.eye(16)[:6])
    errors = [float((p.images @ p.texts.values.T - exact).square().mean()) for p in (fitted, taken)]
    assert errors[0] < 0.2 * errors[1]


def test_what_cannot_be_narrowed_is_refused(tmp_path: Path, pairs: Path) -> None:
    model = str(tmp_path / "wide.safetensors")
    save_model(model, tiny("pooled"))
    width = load_model(model).config.embed_dim
    common = {"model": model, "out": str(tmp_path / "out.safetensors"), "device": "cpu"}
    with pytest.raises(UserError, match=f"embed_dim={width}: .* has {width} channels; give fewer"):
        narrow(Narrow(**common, data=str(pairs), embed_dim=width))
    with pytest.raises(UserError, match="too few pictures to fit to: 1"):
        narrow(Narrow(**common, data=str(pairs), embed_dim=4, images=1))
    classes = tmp_path / "classes/cat"
    classes.mkdir(parents=True)
    picture(0, 32).save(classes / "a.png")
    with pytest.raises(UserError, match=r"data=.* has no captions"):
        narrow(Narrow(**common, data=str(tmp_path / "classes"), embed_dim=4))
    with pytest.raises(UserError, match=r"model: there is no file or folder 'gone\.safetensors'"):
        narrow(Narrow(**{**common, "model": "gone.safetensors"}, data=str(pairs), embed_dim=4))
    with pytest.raises(UserError, match="brings an image tower alone, whose projection is still to be trained"):
        narrow(Narrow(**{**common, "model": "timm:vit_tiny_patch16_224"}, data=str(pairs), embed_dim=4))
    assert not (tmp_path / "out.safetensors").exists()


def test_a_clip_of_transformers_is_narrowed(tmp_path: Path, pairs: Path) -> None:
    theirs = hf_folder(tmp_path / "clip")  # 32 channels
    narrow(Narrow(model=f"hf:{tmp_path / 'clip'}", embed_dim=31, data=str(pairs), out=str(tmp_path / "n.safetensors")))
    ours = load_model(tmp_path / "n.safetensors")
    assert ours.config.interaction == "pooled" and ours.config.embed_dim == 31
    with torch.no_grad():
        pixels = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(5))
        vectors = theirs.visual_projection(theirs.vision_model(pixels).pooler_output)
        before = torch.nn.functional.normalize(vectors, dim=-1)
        after = ours.encode_image(pixels)
    torch.testing.assert_close(after @ after.T, before @ before.T, atol=0.05, rtol=0)
