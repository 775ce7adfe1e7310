"""Near-duplicates against a brute-force search; scores against the evaluation's own scorer."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageFilter

from filip.data.filter import FilterConfig, _band_choices, filter_pairs, main, near_duplicates, shard_images
from filip.data.lists import duckdb_io
from filip.data.sidecar import read_sidecar, write_sidecar
from filip.errors import UserError
from tests.data.pair_shards import write_pairs
from tests.support.shards import Sample, encoded, write_shard


def scene(seed: int) -> Image.Image:
    """Return a picture with structure: blurred noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    return (
        Image.fromarray(noise)
        .filter(ImageFilter.GaussianBlur(1.5))
        .resize((320, 240), Image.Resampling.BICUBIC)
    )


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    return encoded(image, "JPEG", quality=quality)


def write_shards(root: Path, shards: list[list[Image.Image]]) -> FilterConfig:
    for number, images in enumerate(shards):
        keys = [f"{number:05d}{i:04d}" for i in range(len(images))]
        samples = [
            Sample(key, jpeg(image), [f"{key} x"], i, "jpg")
            for i, (key, image) in enumerate(zip(keys, images, strict=True))
        ]
        write_shard(root, number, samples)
    (root / "c.yaml").write_text("title: T\n")
    return FilterConfig(
        str(root / "c.yaml"),
        str(root / "shards"),
        str(root / "captions"),
        str(root / "out"),
        funnel=str(root / "f.json"),
        processes=1,
    )


def test_copies_of_an_image_are_dropped_wherever_they_lie(tmp_path: Path) -> None:
    scenes = [scene(n) for n in range(8)]
    smaller = scenes[0].resize((160, 120))
    brighter = scenes[3].point(lambda value: min(255, value + 12))
    recompressed = Image.open(io.BytesIO(jpeg(scenes[5], 40)))
    config = write_shards(
        tmp_path, [[*scenes[:4], smaller], [brighter, *scenes[4:]], [recompressed, scenes[0]]]
    )
    config.max_distance = 6
    main(config)
    report = json.loads((tmp_path / "f.json").read_text())
    assert (report["in"], report["out"], report["dropped"]) == (12, 8, {"near_duplicate": 4})
    assert report["notes"]["near_duplicates"] == [
        [["00000", "000000004"], ["00000", "000000000"]],
        [["00001", "000010000"], ["00000", "000000003"]],
        [["00002", "000020000"], ["00001", "000010002"]],
        [["00002", "000020001"], ["00000", "000000000"]],
    ]
    kept = {row["key"] for path in (tmp_path / "out").glob("*.parquet") for row in read_sidecar(path)}
    assert kept == {f"00000000{i}" for i in range(4)} | {f"00001000{i}" for i in range(1, 5)}
    # another limit: nothing is hashed again
    measured = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "_measured").rglob("0*.parquet")}
    config.max_distance = 0
    assert filter_pairs(config).dropped["near_duplicate"] >= 1, "the exact copy"
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "_measured").rglob("0*.parquet")} == measured
    # shards that were filled anew are hashed anew
    shutil.rmtree(tmp_path / "shards")
    shutil.rmtree(tmp_path / "captions")
    write_shards(tmp_path, [scenes[:5], [scene(n) for n in range(20, 25)], [scene(30), scene(31)]])
    assert filter_pairs(config).dropped["near_duplicate"] == 0


def test_an_image_that_the_side_cars_leave_out_makes_no_other_a_duplicate(tmp_path: Path) -> None:
    config = write_shards(tmp_path, [[scene(0), scene(1)], [scene(0)]])
    first = tmp_path / "captions" / "00000.parquet"
    write_sidecar(first, [row for row in read_sidecar(first) if row["key"] != "000000000"])
    config.max_distance = 3
    assert filter_pairs(config).dropped["near_duplicate"] == 0


@pytest.mark.parametrize("as_if", [300, 340_000_000])
@pytest.mark.parametrize("distance", [0, 2, 5])
def test_banded_search_finds_what_comparing_all_pairs_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distance: int, as_if: int
) -> None:
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 1 << 63, 300, dtype=np.uint64) << np.uint64(1)
    for i in range(100, 300):  # neighbours of the first hundred, 0 to 7 bits away
        hashes[i] = hashes[i % 100]
        for bit in rng.choice(64, rng.integers(0, 8), replace=False):
            hashes[i] ^= np.uint64(1) << np.uint64(bit)
    keys = [f"{i:04d}" for i in range(300)]
    pq.write_table(
        pa.table({"shard": ["0"] * 300, "key": keys, "phash": hashes.view(np.int64)}), tmp_path / "h.parquet"
    )
    monkeypatch.setattr("filip.data.filter._band_choices", lambda hashes, d: _band_choices(as_if, d))
    path = tmp_path / "near.parquet"
    con = duckdb_io.connect(1, "500MB", tmp_path / "s")
    count = near_duplicates(con, duckdb_io.parquet(tmp_path / "h.parquet"), distance, path)
    found = pq.read_table(path).to_pylist()
    assert count == len(found)
    differing = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    expected = {
        keys[i]: keys[int(np.flatnonzero(differing[i, :i] <= distance)[0])]
        for i in range(300)
        if (differing[i, :i] <= distance).any()
    }
    assert expected and {row["key"]: row["like_key"] for row in found} == expected


def test_few_images_that_are_unlike_are_compared() -> None:
    """At 340 million hashes it used to compare 3e12 pairs, for days."""
    masks = _band_choices(340_000_000, 3)
    assert sum(340e6**2 / 2 / 2 ** bin(mask & (1 << 64) - 1).count("1") for mask in masks) < 1e9
    assert len(masks) == 20 and len(_band_choices(100_000, 3)) < 20


def test_pairs_below_the_score_are_dropped(tmp_path: Path) -> None:
    from filip.data.preprocessing import eval_transform
    from filip.eval.scorer import load_scorer
    from filip.models import build_model, load_preset, save_model

    pairs = write_pairs(tmp_path, [5, 4])
    torch.manual_seed(0)
    save_model(tmp_path / "m.safetensors", build_model(load_preset("tiny")), {})
    scorer = load_scorer(str(tmp_path / "m.safetensors"))
    expected = {}
    for shard in range(2):
        texts = {row["key"]: row["captions"][0] for row in read_sidecar(pairs.sidecar(shard))}
        for key, data in shard_images(pairs.tar(shard)):
            pixels = eval_transform(scorer.image_size)(Image.open(io.BytesIO(data)))[None]
            with torch.inference_mode():
                both = scorer.similarity(scorer.encode_images(pixels), scorer.encode_texts([texts[key]]))
            expected[key] = float(both.i2t + both.t2i) / 2
    limit = sorted(expected.values())[4] - 1e-5
    (tmp_path / "c.yaml").write_text("title: T\n")
    config = FilterConfig(
        str(tmp_path / "c.yaml"),
        pairs.source.shards,
        str(pairs.source.captions),
        str(tmp_path / "out"),
        model=str(tmp_path / "m.safetensors"),
        min_score=limit,
        batch=3,
        processes=1,
    )
    fragment = filter_pairs(config)
    assert dict(fragment.dropped) == {"near_duplicate": 0, "low_score": 4}
    kept = {row["key"] for path in (tmp_path / "out").glob("*.parquet") for row in read_sidecar(path)}
    assert kept == {key for key, value in expected.items() if value >= limit}


def test_limits_that_make_no_sense(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path, [2])
    base = {"source": "demo", "shards": pairs.source.shards, "captions": str(pairs.source.captions)}
    for options, message in (
        ({}, "nothing to filter by"),
        ({"max_distance": 16}, "max_distance=16"),
        ({"min_score": 0.2}, "needs both"),
        ({"max_distance": 1, "out": str(pairs.source.captions)}, "give another one"),
        ({"max_distance": 1, "shards": str(tmp_path)}, r"no \*\.tar"),
        ({"max_distance": 1, "captions": str(tmp_path)}, "no side-car of shard 00000"),
    ):
        with pytest.raises(UserError, match=message):
            filter_pairs(FilterConfig(**{**base, "out": str(tmp_path / "out"), **options}))


def test_a_missing_imagehash_is_named_with_its_remedy(tmp_path: Path) -> None:
    """It used to be a traceback out of a worker."""
    write_pairs(tmp_path, [2])
    (tmp_path / "c.yaml").write_text("title: T\n")
    code = (
        "import sys; sys.modules['imagehash'] = None; from filip.command import run_command; "
        "from filip.data.filter import FilterConfig, main; run_command(main, FilterConfig)"
    )
    options = {
        "source": "c.yaml",
        "shards": "shards",
        "captions": "captions",
        "out": "out",
        "max_distance": "2",
    }
    arguments = [sys.executable, "-c", code, *(f"{key}={value}" for key, value in options.items())]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "imagehash" in done.stderr and "pip install" in done.stderr and "Traceback" not in done.stderr
