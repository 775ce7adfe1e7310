"""Augmentation against torchvision's own, in workers and on the device; determinism; the odd images of the web."""

import io
import random
from contextlib import nullcontext
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv
from torchvision.transforms import autoaugment as tv_auto
from torchvision.transforms.functional import pil_to_tensor

from filip.images.eval_transform import EvalTransform, normalize
from filip.images.pixels import CLIP_MEAN, CLIP_STD
from filip.images.rgb import UNDECODABLE, to_rgb
from filip.loading.augment import AutoAugment, TrainTransform, decode
from filip.loading.augment_on_device import finish, pack
from filip.loading.config import AugmentConfig
from filip.train.engine import to_device
from tests.support.shards import encoded

FILL = (122, 117, 104)


def picture(width: int = 80, height: int = 60, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + rng.integers(-9, 10, smooth.shape)).clip(0, 255).astype(np.uint8))


def draw(transform: TrainTransform, seed: int, image: Image.Image | None = None) -> np.ndarray:
    return transform.pixels(encoded(image or picture(), "PNG"), random.Random(seed))


@pytest.mark.parametrize("size", [(80, 60), (61, 97), (32, 32), (20, 300)])
def test_eval_transform_is_clips(size: tuple[int, int]) -> None:
    expected = tv.Compose(
        [
            tv.Resize(32, tv.InterpolationMode.BICUBIC),
            tv.CenterCrop(32),
            tv.ToTensor(),
            tv.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )(picture(*size))
    torch.testing.assert_close(EvalTransform(32)(picture(*size)), expected, atol=1e-5, rtol=1e-5)
    data = encoded(picture(*size), "PNG")
    torch.testing.assert_close(normalize(EvalTransform(32).pixels(data)), expected, atol=1e-5, rtol=1e-5)


def test_training_and_evaluation_normalise_to_the_same_bits() -> None:
    """A batch of bytes on the device, as a training step makes it, equals one image at a time."""
    images = [np.array(picture(16, 16)), np.array(picture(16, 16).rotate(90))]
    batch = {"pixels": torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images])}
    moved = to_device(batch, torch.device("cpu"), None)["pixels"]
    assert torch.equal(moved, torch.stack([EvalTransform(16)(Image.fromarray(image)) for image in images]))
    assert torch.equal(to_device({"pixels": moved}, torch.device("cpu"), torch.float16)["pixels"], moved.half())


def test_auto_augment_policy_is_torchvisions() -> None:
    """With the same draws, the picture is the same: torchvision is handed ours."""
    ours = AutoAugment(40, FILL)
    theirs = tv_auto.AutoAugment(tv_auto.AutoAugmentPolicy.IMAGENET, tv.InterpolationMode.BILINEAR, fill=list(FILL))
    changed = 0
    for seed in range(150):
        rng = random.Random(seed)
        policy = rng.randrange(25)
        draws = [(rng.random(), rng.random() < 0.5) for _ in range(2)]
        params = (policy, torch.tensor([d[0] for d in draws]), torch.tensor([0 if d[1] else 1 for d in draws]))
        with patch.object(theirs, "get_params", lambda _, params=params: params):
            expected = theirs(picture(40, 40, seed))
        first, second = ours.draw(random.Random(seed))
        actual = ours.apply(ours.apply(picture(40, 40, seed), first), second)
        assert np.array_equal(actual, expected), seed
        changed += not np.array_equal(actual, picture(40, 40, seed))
    assert changed > 75


def test_each_operation_does_to_a_batch_what_it_does_to_an_image() -> None:
    """The device's are torch's, the workers' PIL's: they differ where a rotated picture ends."""
    ours, images = AutoAugment(40, FILL), [picture(40, 40, seed) for seed in range(32)]
    batch = torch.stack([pil_to_tensor(image) for image in images])
    for number, (name, magnitude) in enumerate(ours.operations):
        actual = ours.apply(batch, number).float()
        expected = torch.stack([pil_to_tensor(ours.apply(image, number)) for image in images]).float()
        borders = 0.06 if name in ("Rotate", "ShearX") else 0
        assert ((actual - expected).abs() > 1).float().mean() <= borders, (name, magnitude)
        for statistic in (torch.mean, torch.std):
            assert abs(statistic(actual) - statistic(expected)) < (1 if borders else 0.6), (name, magnitude)


def test_the_device_finishes_crops_as_the_workers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flipped, larger and smaller than the model's size, of one column; with AutoAugment, the same in distribution."""
    monkeypatch.setattr("filip.loading.augment_on_device._PIXELS", 1_000_000)  # of 203 images, eleven at a time
    sizes = [(20, 300), (300, 20), (1, 1), *((20 + 7 * n % 80, 20 + 11 * n % 80) for n in range(200))]
    files = [encoded(picture(*size, seed), "PNG") for seed, size in enumerate(sizes)]
    for share, limit in ((0.0, 0.001), (1.0, 0.04)):
        transform = TrainTransform(32, AugmentConfig(share, crop_scale_min=0.3))
        crops = pack([transform.crop(file, random.Random(seed)) for seed, file in enumerate(files)], 32)
        actual = finish(crops, torch.device("cpu")).float()
        images = [torch.tensor(transform.pixels(file, random.Random(seed))) for seed, file in enumerate(files)]
        expected = torch.stack(images).permute(0, 3, 1, 2).float()
        assert ((actual - expected).abs() > 1).float().mean() < limit
        assert abs(actual.mean() - expected.mean()) < 0.3 and abs(actual.std() - expected.std()) < 0.3


def test_crops_follow_torchvisions_distribution() -> None:
    """Compare area share and aspect ratio of many crops with RandomResizedCrop's."""
    transform = TrainTransform(32, AugmentConfig(False, crop_scale_min=0.2), crop_ratio=(0.5, 2.0))
    rng = random.Random(0)
    ours = np.array([transform._crop(100, 70, rng) for _ in range(4000)])
    torch.manual_seed(0)
    image = torch.empty(3, 70, 100)
    theirs = np.array([tv.RandomResizedCrop.get_params(image, [0.2, 1.0], [0.5, 2.0]) for _ in range(4000)])[
        :, [1, 0, 3, 2]
    ]
    for statistic in (
        lambda c: c[:, 2] * c[:, 3] / 7000,
        lambda c: np.log(c[:, 2] / c[:, 3]),
        lambda c: c[:, 0] / 100,
        lambda c: c[:, 1] / 70,
    ):
        a, b = np.sort(statistic(ours)), np.sort(statistic(theirs))
        assert abs(a - b).mean() < 0.02
    assert (ours[:, :2] + ours[:, 2:] <= (100, 70)).all()


def test_crop_resizes_as_pil_does() -> None:
    """Without flip, the pixels are those of PIL's crop and bicubic resize, to rounding."""
    transform = TrainTransform(32, AugmentConfig(False, flip_probability=0.0))
    for seed in range(20):
        left, top, width, height = transform._crop(80, 60, random.Random(seed))
        expected = picture().crop((left, top, left + width, top + height)).resize((32, 32), Image.Resampling.BICUBIC)
        assert abs(draw(transform, seed).astype(int) - np.asarray(expected)).max() <= 2


def test_transparency_is_onto_white() -> None:
    half = picture().convert("RGBA")
    half.putalpha(Image.linear_gradient("L").resize(half.size))
    alpha = np.asarray(half)[..., 3:] / 255
    expected = np.asarray(picture()) * alpha + 255 * (1 - alpha)
    for image in (half, Image.open(io.BytesIO(encoded(half, "WEBP", lossless=True)))):
        assert abs(np.asarray(to_rgb(image)) - expected).max() <= 1
    assert abs(decode(encoded(half, "PNG")) - expected).max() <= 1
    grey = Image.new("LA", (4, 4), (100, 0))
    assert (decode(encoded(grey, "PNG")) == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95])
def test_broken_images_raise_what_the_loader_catches(kind: str, share: float) -> None:
    data = encoded(picture(), kind)
    cut = data[: int(len(data) * share)]
    for transform in (TrainTransform(32), EvalTransform(32)):
        with pytest.raises(UNDECODABLE):
            transform.pixels(cut, random.Random(0))
    with pytest.raises(UNDECODABLE):
        decode(b"<html>not an image</html>")


def test_augment_share_of_the_images_are_augmented() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8))
    plain = draw(TrainTransform(48, AugmentConfig(0.0, 1.0, 0.0), crop_ratio=(1.0, 1.0)), 0, image)
    some = TrainTransform(48, AugmentConfig(0.25, 1.0, 0.0), crop_ratio=(1.0, 1.0))
    untouched = sum(np.array_equal(draw(some, seed, image), plain) for seed in range(400))
    assert 0.70 * 400 < untouched < 0.85 * 400  # three quarters, and where a policy happens to do nothing


def test_a_jpeg_has_pillows_pixels_at_every_scale_and_damage_is_judged_by_pillow() -> None:
    rng = random.Random(0)
    for seed in range(60):
        photograph = picture(rng.randint(30, 700), rng.randint(30, 700), seed)
        mode = rng.choice(["RGB", "RGB", "L", "CMYK"])
        options = {"quality": rng.choice([30, 95]), "progressive": rng.random() < 0.3}
        if mode == "RGB":
            options["subsampling"] = rng.choice([0, 1, 2])
        data = encoded(photograph.convert(mode), "JPEG", **options)
        if seed % 6 == 0:
            data = data[: len(data) * 2 // 3]
        elif seed % 6 == 1:
            data = data[:-40] + bytes(20) + data[-20:]
        transform, results = TrainTransform(rng.choice([16, 64, 224])), []
        for refused in (False, True):
            with patch("simplejpeg.decode_jpeg", side_effect=ValueError) if refused else nullcontext():
                try:
                    results.append(transform.crop(data, random.Random(seed))[0].tolist())
                except UNDECODABLE as error:
                    results.append(str(error))
        assert results[0] == results[1], (seed, mode, options)
