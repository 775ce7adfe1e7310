"""Every odd image that the rules let through must come out upright, 8-bit and in its own colours."""

import io
import itertools
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from filip.data import by_img2dataset
from filip.data.cards import DownloadSettings, ImageRuleSettings, SourceCard
from filip.data.fetching.image_rules import CheckedResizer, inspect
from filip.images.rgb import UNDECODABLE
from filip.loading.augment import decode
from tests.data import hostile
from tests.support.processes import run_well
from tests.support.shards import encoded

WHITE = (255, 255, 255)
# colours at a quarter and at three quarters of the height, left and right: (top left, bottom left, bottom right)
EXPECTED = {
    "jpeg": [hostile.RED] * 3,
    "png": [hostile.GREEN] * 3,
    "webp": [hostile.BLUE] * 3,
    "gif": [hostile.RED] * 3,  # the first frame
    "cmyk": [(0, 0, 255)] * 3,
    "palette": [hostile.RED, hostile.BLUE, hostile.BLUE],
    "grey16": [(128, 128, 128)] * 3,
    "rgb16": [hostile.GREEN] * 3,
    "exif": [hostile.RED, hostile.BLUE, hostile.BLUE],
    "rgba": [hostile.GREEN, hostile.GREEN, WHITE],
    "grey": [(90, 90, 90)] * 3,
    "text_plain": [hostile.RED] * 3,
    "trailing": [hostile.RED] * 3,
    "limit": [hostile.RED] * 3,
}
PROBLEMS = {
    "html": "not_an_image", "empty": "not_an_image", "truncated_jpeg": "truncated", "truncated_png": "truncated",
    "no_end": "truncated", "broken_png": "undecodable", "bomb": "too_many_pixels", "small": "too_small",
    "wide": "aspect",
}  # fmt: skip
BODIES = {**hostile.GOOD, **hostile.BAD}


@pytest.fixture(scope="module")
def resizer() -> CheckedResizer:
    return CheckedResizer(DownloadSettings(image_size=120), ImageRuleSettings(min_side=200, max_aspect=3.0))


def assert_colours(data: bytes, expected, name: str = "") -> None:
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    places = [(height // 4, width // 4), (3 * height // 4, width // 4), (3 * height // 4, 3 * width // 4)]
    for (y, x), colour in zip(places, expected, strict=True):
        assert np.abs(pixels[y, x] - colour).max() <= 8, f"{name}: {pixels[y, x]} at {x}, {y}, not {colour}"


@pytest.mark.parametrize("name", EXPECTED)
def test_what_the_rules_keep_is_upright_and_in_its_colours(resizer: CheckedResizer, name: str) -> None:
    data, width, height, original_width, original_height, error = resizer(io.BytesIO(BODIES[name]()))
    assert error is None
    size = (600, 200) if name == "limit" else (300, 240)
    assert (original_width, original_height) == size
    assert height == 120 and width == round(120 * size[0] / size[1])
    assert_colours(data, EXPECTED[name], name)


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_the_rules_drop_has_one_reason(resizer: CheckedResizer, name: str) -> None:
    body = BODIES[name]()
    started = time.perf_counter()
    *_, error = resizer(io.BytesIO(body))
    assert error.split(":")[0] == PROBLEMS[name]
    assert time.perf_counter() - started < 1, "a bomb is refused by its header, not decoded"


def test_limits_are_inclusive_and_either_side_counts() -> None:
    tall = hostile.plain(200, 600)
    assert inspect(tall, 200, 3.0) == (None, None)
    assert inspect(tall, 201, 3.0)[0] == "too_small: 200 x 600"
    assert inspect(tall, 200, 2.99)[0] == "aspect: 200 x 600"
    assert inspect(hostile.plain(8, 24), 0, 3.0) == (None, None), "min_side 0 switches the rule off"


RESIZERS = """import pickle, sys
from img2dataset.resizer import Resizer
made = [Resizer(**options)(picture) for options, picture in pickle.load(sys.stdin.buffer)]
sys.stdout.buffer.write(pickle.dumps(made))"""


def theirs(asked: list[tuple[dict[str, Any], bytes]]) -> list[Any]:
    """Return what img2dataset makes of pictures with the options of its resizer, in an environment that uv fetches."""
    program = [*by_img2dataset.program(SourceCard("web"))[:-2], "-c", RESIZERS]
    variables = {"UV_PYTHON": sys.executable, **os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    pictures = pickle.dumps([(options, io.BytesIO(data)) for options, data in asked])
    done = subprocess.run(program, input=pictures, env=variables, capture_output=True)
    if done.returncode and b"Traceback" not in done.stderr:
        pytest.skip(f"uv cannot fetch img2dataset: {done.stderr.decode()[-200:]}")
    assert done.returncode == 0, done.stderr.decode()
    return list(pickle.loads(done.stdout))


@pytest.mark.system
def test_images_are_resized_as_by_img2dataset() -> None:
    """Its release wants an older OpenCV than ours, and both write the same bytes."""
    rng = np.random.default_rng(0)
    ours, asked = [], []
    for mode in ("no", "keep_ratio", "center_crop", "border", "keep_ratio_largest"):
        for bigger, written in itertools.product((True, False), ("jpg", "png", "webp")):
            quality = 6 if written == "png" else 95
            stored = DownloadSettings(101, mode, bigger, written, quality)
            resizer = CheckedResizer(stored, ImageRuleSettings(min_side=0, max_aspect=100))
            options = {"image_size": 101, "resize_mode": mode, "resize_only_if_bigger": bigger}
            options |= {"encode_format": written, "encode_quality": quality}
            for size in ((330, 217), (217, 330), (101, 101), (101, 150), (64, 80), (90, 131)):
                for shape in (size, (*size, 3)):
                    data = encoded(Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)), "PNG")
                    ours.append(resizer(io.BytesIO(data)))
                    asked.append((options, data))
    for kind in ("PNG", "WEBP"):  # alpha
        transparent = Image.fromarray(rng.integers(0, 256, (600, 250, 4), dtype=np.uint8), "RGBA")
        data = encoded(transparent, kind, **({"lossless": True} if kind == "WEBP" else {}))
        ours.append(CheckedResizer(DownloadSettings(120, "keep_ratio", True), ImageRuleSettings())(io.BytesIO(data)))
        asked.append(({"image_size": 120, "resize_mode": "keep_ratio", "resize_only_if_bigger": True}, data))
    for result, expected, (options, _) in zip(ours, theirs(asked), asked, strict=True):
        assert result == expected, options


@pytest.mark.parametrize("mode", ["keep_ratio", "center_crop", "border", "keep_ratio_largest"])
@pytest.mark.parametrize("colours", ["RGB", "L"])
def test_a_large_jpeg_is_decoded_in_part_and_looks_the_same(mode: str, colours: str) -> None:
    photograph = Image.fromarray(load_sample_images().images[1]).convert(colours)
    for side in (700, 1410, 2900):
        data = encoded(photograph.resize((side, side - 60), Image.Resampling.LANCZOS), "JPEG", quality=95)
        rules = ImageRuleSettings()
        results = [
            CheckedResizer(DownloadSettings(128, mode, full_decoding=whole), rules)(io.BytesIO(data))
            for whole in (False, True)
        ]
        assert results[0][1:] == results[1][1:] and results[0][3:5] == (side, side - 60)
        part, whole = (np.asarray(Image.open(io.BytesIO(one[0]))).astype(float) for one in results)
        assert results[0][0] != results[1][0] and ((part - whole) ** 2).mean() < 40, "less than 32 dB"


PEAK = """
import io, resource, sys
from filip.data import by_img2dataset
from filip.data.cards import DownloadSettings, ImageRuleSettings
from filip.data.fetching.image_rules import CheckedResizer
resizer = CheckedResizer(DownloadSettings(), ImageRuleSettings())
def peak(name):
    assert resizer(io.BytesIO(open(name, "rb").read()))[-1] is None
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak(sys.argv[1])
print(max(map(peak, sys.argv[2:])) - before)
"""


@pytest.mark.slow
def test_one_image_takes_bounded_memory(tmp_path: Path) -> None:
    """A few kilobytes of PNG used to take 76 bytes a pixel: 7.6 GB at the limit of 100 million."""
    Image.new("RGBA", (300, 300)).save(tmp_path / "small.png")
    for mode, colour in (("RGBA", (9, 99, 200, 90)), ("I;16", 30_000), ("LA", (9, 90))):
        Image.new(mode, (3000, 3000), colour).save(tmp_path / f"{mode[:2]}.png")
    names = [str(tmp_path / f"{name}.png") for name in ("small", "RG", "I;", "LA")]
    assert int(run_well("-c", PEAK, *names).stdout) < 25 * 3000 * 3000


def test_postscript_does_not_reach_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # looked for anew
    drawing = io.BytesIO()
    Image.new("RGB", (300, 300)).save(drawing, "EPS")
    assert Image.open(io.BytesIO(drawing.getvalue())).format == "EPS", "Pillow alone would take it"
    problem, _ = inspect(drawing.getvalue(), 0, 10)
    assert problem and problem.startswith("not_an_image")
    with pytest.raises(UNDECODABLE):
        decode(drawing.getvalue())
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("top", [1.0, 65535.0])
def test_a_picture_in_floating_point_keeps_its_grey(top: float) -> None:
    """Pillow's own conversion clips at 255, so that a picture of 0 to 1 becomes black."""
    grey = np.linspace(0, top, 256, dtype=np.float32).reshape(16, 16)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "TIFF")
    problem, plain = inspect(file.getvalue(), 0, 3)
    assert problem is None and plain is not None
    shown = np.asarray(Image.open(io.BytesIO(plain)))[..., 0].astype(int)
    assert np.abs(shown - np.arange(256).reshape(16, 16)).max() <= 1
