"""Near-duplicates against a brute-force search, similarities against the evaluation's scorer, and what is selected."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps

from filip.common.errors import UserError
from filip.common.files import write_json
from filip.data.score import ANY_DISTANCE, SCORES, ScoreConfig, score
from filip.data.shard_index import shard_images
from filip.data.sidecar import SCHEMA, read_sidecar
from tests.data.pair_shards import write_pairs
from tests.support.shards import Sample, encoded, write_shard


def scene(seed: int) -> Image.Image:
    """Return a picture with structure: blurred noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(1.5)).resize((320, 240), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    return encoded(image, "JPEG", quality=quality)


def write_shards(place: Path, shards: list[list[Image.Image]], **options) -> ScoreConfig:
    for number, images in enumerate(shards):
        keys = [f"{number:05d}{i:04d}" for i in range(len(images))]
        samples = [
            Sample(key, jpeg(image), [f"{key} x"], i, "jpg")
            for i, (key, image) in enumerate(zip(keys, images, strict=True))
        ]
        write_shard(place, number, samples)
    places = {name: str(place / name) for name in ("shards", "captions")}
    return ScoreConfig(**places, out=str(place / "scored"), processes=1, **options)


def scored(out: Path) -> dict[str, dict]:
    return {row["key"]: row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()}


def copies(root: Path, column: str = "near") -> dict[str, str]:
    """Return which image each copy resembles."""
    return {key: row[column] for key, row in scored(root / "scored").items() if row[column] is not None}


def test_copies_of_an_image_are_found_wherever_they_lie(tmp_path: Path) -> None:
    scenes = [scene(n) for n in range(8)]
    smaller = scenes[0].resize((160, 120))
    brighter = scenes[3].point(lambda value: min(255, value + 12))
    recompressed = Image.open(io.BytesIO(jpeg(scenes[5], 40)))
    shards = [[*scenes[:4], smaller], [brighter, *scenes[4:]], [recompressed, scenes[0]]]
    config = write_shards(tmp_path, shards)
    assert score(config) == {"kept": 12, "copies (near)": 4, "copies (test)": 0}
    assert copies(tmp_path) == {
        "000000004": "00000/000000000",
        "000010000": "00000/000000003",
        "000020000": "00001/000010002",
        "000020001": "00000/000000000",
    }
    rows = scored(tmp_path / "scored")
    assert rows["000020001"]["near_distance"] == 0 and rows["000000000"]["near_distance"] == ANY_DISTANCE
    plain = {path.name: read_sidecar(path) for path in (tmp_path / "captions").glob("*.parquet")}
    assert {path.name: read_sidecar(path) for path in (tmp_path / "scored").glob("*.parquet")} == plain
    # nothing is hashed again
    measured = {p: p.stat().st_mtime_ns for p in (tmp_path / "scored" / "_measured").glob("0*")}
    score(config)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "scored" / "_measured").glob("0*")} == measured
    # shards that were filled anew are hashed anew
    shutil.rmtree(tmp_path / "shards")
    shutil.rmtree(tmp_path / "captions")
    write_shards(tmp_path, [scenes[:5], [scene(n) for n in range(20, 25)], [scene(30), scene(31)]])
    score(config)
    assert copies(tmp_path) == {}


def test_which_copies_are_found_and_which_are_not(tmp_path: Path) -> None:
    """docs/data.md tells it: those that were turned, or cut at one corner, are not."""

    def inside(image: Image.Image, share: float) -> Image.Image:
        x, y = round(share * image.width), round(share * image.height)
        return image.crop((x, y, image.width - x, image.height - y))

    near: list[Callable[[Image.Image], Image.Image]] = [
        lambda image: image.resize((160, 120)),
        lambda image: Image.open(io.BytesIO(jpeg(image, 30))),
        lambda image: image.filter(ImageFilter.GaussianBlur(2)),
        lambda image: ImageOps.colorize(image.convert("L"), "black", "bisque"),
        ImageOps.mirror,
        lambda image: inside(image, 0.05),
        lambda image: inside(image, 0.1),
        lambda image: ImageOps.expand(image, 24, "navy"),
    ]
    far: list[Callable[[Image.Image], Image.Image]] = [
        lambda image: image.crop((16, 12, 320, 240)),  # without 5 % at a corner
        lambda image: image.rotate(90),
    ]
    scenes = [scene(n) for n in range(5)]
    for name, changes, found in (("near", near, 40), ("far", far, 0)):
        changed = [change(image) for change in changes for image in scenes]
        score(write_shards(tmp_path / name, [scenes, changed]))
        assert len(copies(tmp_path / name)) == found
        assert all(int(key[-4:]) % 5 == int(other[-4:]) % 5 for key, other in copies(tmp_path / name).items())


def test_copies_of_the_images_of_benchmarks(tmp_path: Path) -> None:
    test_set = tmp_path / "benchmarks" / "pets" / "test"
    for name, n in (("cat", 2), ("dog", 9)):
        (test_set / name).mkdir(parents=True)
        scene(n).resize((200, 150)).save(test_set / name / f"{n}.png")
    card = "name: pets\ntitle: Pets\nkind: classification\nmetric: top1\nloader: imagefolder\n"
    card += "layouts: {imagefolder: {path: pets, split: test}}\nclasses: {cat: cat, dog: dog}\n"
    (tmp_path / "pets.yaml").write_text(card)
    given = {"test_sets": [str(tmp_path / "pets.yaml")], "root": str(tmp_path / "benchmarks")}
    config = write_shards(tmp_path / "cc12m", [[scene(3), scene(1)], [scene(2), scene(3)]], **given)
    score(config)
    assert copies(tmp_path / "cc12m") == {"000010001": "00000/000000000"}
    (key,) = copies(tmp_path / "cc12m", "test")
    assert key == "000010000" and copies(tmp_path / "cc12m", "test")[key].startswith("pets/")

    config.keep = ["near_distance > 3", "test_distance > 3"]
    assert score(config) == {"kept": 2, "copies (near)": 1, "copies (test)": 1, **dict.fromkeys(config.keep, 1)}
    rows = [row["key"] for path in sorted(Path(config.out).glob("*.parquet")) for row in read_sidecar(path)]
    assert rows == ["000000001", "000000000"], "the side-car's order"
    for keep, why in (("near_distance < 0", "leave nothing"), ("distance > 3", r"^keep: .*near_distance \(TINYINT\)")):
        config.keep = [keep]
        with pytest.raises(UserError, match=why):
            score(config)


def test_similarity_is_that_of_the_evaluation(tmp_path: Path) -> None:
    from filip.eval.scorer import load_scorer
    from filip.images.eval_transform import EvalTransform
    from filip.models import build_model, load_preset, save_model

    pairs = write_pairs(tmp_path, [5, 4])
    run = tmp_path / "run"  # of a training that goes on: its weights change, not its name
    config = ScoreConfig(
        pairs.source.shards, str(pairs.source.captions), str(tmp_path / "scored"), model=str(run), processes=1
    )
    write_json(run / "config.json", {"run_dir": str(run), "out": "m.safetensors"})
    write_json(run / "finished.json", {})
    for seed in (1, 0):
        torch.manual_seed(seed)
        save_model(run / "finished/m.safetensors", build_model(load_preset("tiny")), {})
        assert score(config)["kept"] == 9
    scorer = load_scorer(str(run))
    expected = {}
    for shard in range(2):
        texts = {row["key"]: row["captions"][0] for row in read_sidecar(pairs.sidecar(shard))}
        for key, data in shard_images(pairs.tar(shard)):
            pixels = EvalTransform(scorer.image_size)(Image.open(io.BytesIO(data)))[None]
            with torch.inference_mode():
                both = scorer.similarity(scorer.encode_images(pixels), scorer.encode_texts([texts[key]]))
            expected[key] = float(both.i2t + both.t2i) / 2
    results = {key: row["similarity"] for key, row in scored(tmp_path / "scored").items()}
    assert results == pytest.approx(expected, abs=1e-5)
    limit = sorted(expected.values())[4] - 1e-5
    config.keep = [f"similarity >= {limit}"]
    counts = score(config)
    assert (counts["kept"], counts[config.keep[0]]) == (5, 4)
    assert {*scored(tmp_path / "scored")} == {key for key, value in expected.items() if value >= limit}
    assert {*SCHEMA.names, *SCORES} == {*pq.read_schema(tmp_path / "scored" / "00000.parquet").names}


def test_what_cannot_be_scored(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path, [2])
    pq.write_table(pq.read_table(pairs.sidecar(0), columns=["key"]), tmp_path / "00000.parquet")
    base = {"shards": pairs.source.shards, "captions": str(pairs.source.captions)}
    for options, message in (
        ({"out": str(pairs.source.captions)}, "give another one"),
        ({"shards": str(tmp_path)}, r"no \*\.tar"),
        ({"captions": pairs.source.shards}, "no side-car of shard 00000"),
        ({"captions": str(tmp_path)}, "00000.parquet is no side-car"),
        ({"test_sets": ["cifar10"], "root": str(tmp_path)}, "cifar10"),
        ({"keep": ["similarty > 0.2"]}, "similarty.*There are the columns"),
    ):
        with pytest.raises(UserError, match=message):
            score(ScoreConfig(**{**base, "out": str(tmp_path / "out"), "processes": 1, **options}))
    assert not list(tmp_path.glob("out/_measured/*.parquet"))  # a slip is told before any picture is read
