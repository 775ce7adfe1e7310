"""A pooled model loads in open_clip by its own means and gives the same vectors; what it cannot hold is refused."""

from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

import filip
from filip.common.errors import UserError
from filip.export.__main__ import Export, export
from filip.models import ModelConfig, load_model
from tests.support.captions import UNTIDY_CAPTIONS


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_open_clip_gives_our_vectors(
    activation: str, saved: Callable[..., str], tmp_path: Path, pictures: list[Image.Image]
) -> None:
    def pooled(config: ModelConfig) -> None:
        config.interaction = "pooled"
        config.image.activation = config.text.activation = activation

    file = saved(pooled)
    export(Export(model=file, out=str(tmp_path / "out"), to="open_clip"))
    ours = filip.load(file, device="cpu")
    name = f"local-dir:{tmp_path / 'out'}"
    theirs, _, transform = open_clip.create_model_and_transforms(name)
    theirs.eval()
    ids = open_clip.get_tokenizer(name)(UNTIDY_CAPTIONS, context_length=32)
    pixels = torch.stack([transform(image) for image in pictures[:1]])
    with torch.no_grad():
        torch.testing.assert_close(
            theirs.encode_text(ids, True), ours.encode_texts(UNTIDY_CAPTIONS).values, atol=1e-6, rtol=0
        )
        torch.testing.assert_close(
            theirs.encode_image(pixels, True), ours.encode_images(pictures[:1]), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(theirs.logit_scale.exp(), load_model(file).scale()[0])

    export(Export(model=file, out=str(tmp_path / "clip"), to="clip"))
    assert not list((tmp_path / "clip").glob("*.py"))  # transformers' own class, without code of ours
    model, processor = (kind.from_pretrained(tmp_path / "clip") for kind in (CLIPModel, CLIPProcessor))
    # its processor resizes by torchvision, to a grey level of Pillow's
    texts = ["a red cat", "two dogs and a very small bird"]
    inputs = processor(images=pictures[:2], text=texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model.eval()(**inputs)
    scores = ours.similarity(ours.encode_images(pictures[:2]), ours.encode_texts(texts)).i2t
    torch.testing.assert_close(found.logits_per_image / model.logit_scale.exp(), scores, atol=1e-4, rtol=0)


def test_what_clip_is_not_is_refused_with_the_reason(saved: Callable[..., str], tmp_path: Path) -> None:
    def change(pooling: str = "ends", **image: object) -> Callable[[ModelConfig], None]:
        def apply(config: ModelConfig) -> None:
            config.interaction, config.pooling = "pooled", pooling
            for name, value in image.items():
                setattr(config.image, name, value)

        return apply

    cases: list[tuple[Callable[[ModelConfig], object] | None, str]] = [
        (None, "one vector per image and text"),
        (change(pooling="mean"), "this one has pooling=mean; to=hf holds it"),
        (change(timm="vit_base_patch16_224"), "norm_pre|patch_embed.proj.bias"),
        (change(options={"init_values": 0.1}), "has blocks.0.ls1.gamma"),
        (change(activation="quick_gelu"), "one activation for both towers"),
        (change(options={"mlp_ratio": 2.0}), "four times as wide"),
    ]
    for apply, reason in cases:
        with pytest.raises(UserError, match=reason):
            export(Export(model=saved(apply), out=str(tmp_path / "out"), to="open_clip"))
        assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(saved: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    file = saved(lambda config: setattr(config, "interaction", "pooled"))
    with pytest.raises(UserError, match="exists already"):
        export(Export(model=file, out=str(tmp_path / "out"), to="open_clip"))
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
