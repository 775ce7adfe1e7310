"""data.feature_cache: what a frozen stem computes of an image is read again, and nothing else changes."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from filip.common.errors import UserError
from filip.images.eval_transform import normalize_planes
from filip.loading.loader import PairLoader, open_maps
from filip.loading.stem_maps import cache_folder, fill
from filip.models import DualEncoder
from filip.train.loop import initial_model
from filip.train.ranks import StopSignal
from tests.data.pair_shards import Pairs, key_of, loader, write_pairs
from tests.support.launched_ranks import Ranks
from tests.support.training import compose, losses, run_many, same_weights, train_arguments

NAME = "tf_efficientnet_lite0"
WHOLE: dict[str, Any] = {"auto_augment": 0, "crop_scale_min": 1.0, "flip_probability": 0.0}
STEM = (
    "model=tiny",
    f"model.image.stem={NAME}",
    "model.image.image_size=32",
    f"init_from=timm:{NAME}:wheel",
    "warm_start.image=frozen_stem",
)


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return initial_model(compose(*STEM))


def reading(model: DualEncoder, data: Pairs, cache: Path, **options: Any) -> PairLoader:
    """Return a loader that reads maps, which are made first where they are missing."""
    folder = cache_folder(str(cache), model, "fp32")
    made = loader(data, image_size=32, batch_size=5, feature_maps=folder, **WHOLE, **options)
    fill(made.stream, model, "fp32", torch.device("cpu"), lambda: False)
    return made


@pytest.mark.parametrize("workers", [0, 2])
def test_the_maps_are_those_of_the_images_that_would_be_read(model: DualEncoder, tmp_path: Path, workers: int) -> None:
    data = write_pairs(tmp_path, [9, 6])
    plain = list(loader(data, image_size=32, batch_size=5, **WHOLE))
    cached = list(reading(model, data, tmp_path / "cache", workers=workers))
    assert len(plain) == len(cached) == 3
    for images, maps in zip(plain, cached, strict=True):
        assert images["key"] == maps["key"]
        assert torch.equal(images["ids"], maps["ids"]) and torch.equal(images["group"], maps["group"])
        assert maps["pixels"].dtype == torch.float16
        stem = model.image.stem
        assert stem is not None
        with torch.no_grad():
            expected = stem(normalize_planes(images["pixels"]))
            torch.testing.assert_close(maps["pixels"].float(), expected, atol=1e-2, rtol=1e-3)
            torch.testing.assert_close(
                model.image(maps["pixels"].float()),
                model.image(normalize_planes(images["pixels"])),
                atol=1e-2,
                rtol=1e-2,
            )


def test_an_image_that_cannot_be_decoded_is_replaced_as_without_maps(model: DualEncoder, tmp_path: Path) -> None:
    data = write_pairs(tmp_path, [10])
    blob = bytearray(data.tar(0).read_bytes())
    start = blob.index(key_of(0, 3).encode() + b".jpg") + 512
    blob[start : start + 300] = bytes(300)
    data.tar(0).write_bytes(blob)
    plain = loader(data, image_size=32, batch_size=5, **WHOLE)
    cached = reading(model, data, tmp_path / "cache")
    assert [batch["key"] for batch in plain] == [batch["key"] for batch in cached]
    assert plain.counters == cached.counters and cached.counters["substituted"] == 1


def test_only_what_is_missing_or_has_changed_is_made(model: DualEncoder, tmp_path: Path) -> None:
    data = write_pairs(tmp_path, [4, 4, 4])
    stream = reading(model, data, tmp_path / "cache").stream
    folder = cache_folder(str(tmp_path / "cache"), model, "fp32")
    assert folder is not None
    paths = [stream.indices[0].map_path(folder, shard) for shard in range(3)]
    made = [path.stat().st_mtime_ns for path in paths]
    paths[1].unlink()  # as after a kill
    before = open_maps(paths[2]).copy()
    data.tar(2).write_bytes(write_pairs(tmp_path / "others", [9, 9, 4]).tar(2).read_bytes())
    again = reading(model, data, tmp_path / "cache").stream
    new = again.indices[0].map_path(folder, 2)
    assert new != paths[2] and not np.array_equal(open_maps(new), before)
    assert [paths[0].stat().st_mtime_ns, paths[2].stat().st_mtime_ns] == [made[0], made[2]]
    assert paths[1].exists()


def test_a_signal_stops_within_a_shard_and_finished_files_stay(model: DualEncoder, tmp_path: Path) -> None:
    data = write_pairs(tmp_path, [4, 200])
    folder = cache_folder(str(tmp_path / "cache"), model, "fp32")
    made = loader(data, image_size=32, batch_size=5, feature_maps=folder, **WHOLE)
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    stop, seen = StopSignal(), []

    def interrupt(_: Any, inputs: Any) -> None:
        seen.append(len(inputs[0]))
        if len(seen) == 2:  # the first images of the second shard
            signal.raise_signal(signal.SIGTERM)

    assert model.image.stem is not None
    hook = model.image.stem.register_forward_pre_hook(interrupt)
    try:
        fill(made.stream, model, "fp32", torch.device("cpu"), lambda: stop.received is not None)
    finally:
        hook.remove()
        for number, handler in kept.items():
            signal.signal(number, handler)
    assert stop.received == "SIGTERM" and seen == [4, 64]
    assert [made.stream.indices[0].map_path(folder, shard).exists() for shard in (0, 1)] == [True, False]


def test_a_folder_belongs_to_one_network_size_and_precision(model: DualEncoder, tmp_path: Path) -> None:
    fresh = initial_model(compose("model=tiny", f"model.image.stem={NAME}", "model.image.image_size=32"))
    assert fresh.image.stem is not None
    fresh.image.stem.requires_grad_(False)
    larger = initial_model(compose(*STEM, "image_size=64"))
    caches = ((model, "fp32"), (model, "bf16"), (fresh, "fp32"), (larger, "fp32"))
    assert len({cache_folder("c", network, precision) for network, precision in caches}) == 4
    assert cache_folder(None, model, "fp32") is None


def test_a_broken_file_is_named(model: DualEncoder, tmp_path: Path) -> None:
    data = write_pairs(tmp_path, [5])
    stream = reading(model, data, tmp_path / "cache").stream
    assert stream.config.feature_maps is not None
    path = stream.indices[0].map_path(stream.config.feature_maps, 0)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="delete the file and start again"):
        stream[0, 0]


@pytest.mark.slow
def test_ranks_and_trainings_fill_it_together_and_learn_the_same(squares: Path, tmp_path: Path) -> None:
    """Two trainings of two ranks each run at once, next to one that keeps nothing."""
    whole = [f"data.{name}={str(value).lower()}" for name, value in WHOLE.items()]
    settings = [*STEM[1:], *whole, "max_steps=4", "optimizer.warmup_steps=1"]
    cached = [*settings, f"data.feature_cache={tmp_path}/cache"]
    starts = [
        Ranks(2, train_arguments(squares, tmp_path / name, *cached), tmp_path / f"{name}.log") for name in ("a", "b")
    ]
    assert [ranks.wait(300) for ranks in starts] == [[0, 0], [0, 0]], starts[0].text()[-3000:]
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 3
    runs = [train_arguments(squares, tmp_path / name, *of) for name, of in (("plain", settings), ("later", cached))]
    assert run_many(2, runs, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()[-3000:]
    later = tmp_path / "later" / "model.safetensors"
    # the order of the data follows the seed, whether the maps were there or not
    assert all(same_weights(tmp_path / name / "model.safetensors", later) for name in ("a", "b"))
    for name in ("a", "b"):
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / "plain"), rtol=2e-3)
