"""The demo corpus: what the list may hold, what is planted in it, what the test sets hold, and that it repeats."""

import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from filip.cli.command import compose_config
from filip.data.cards import load_source
from filip_demo import packages
from filip_demo.catalogue import Catalogue
from filip_demo.corpus import Corpus, main, train_and_test
from filip_demo.faulty_rows import plant
from filip_demo.packages import ARTISTS
from filip_demo.render import SIDE
from filip_demo.training_list import training_table

CACHE = Path(__file__).parents[2] / ".cache" / "demo"  # shared with `make demo`
LIMIT = 24


def build(out: Path) -> Path:
    overrides = [f"out={out}", f"limit={LIMIT}", f"cache={CACHE}", "port=8901", "processes=2"]
    overrides += ["scenes=60", "test_scenes=20"]
    main(compose_config(Corpus, overrides))
    return out


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build(tmp_path_factory.mktemp("demo") / "corpus")


@pytest.fixture(scope="module")
def catalogue():
    return Catalogue(packages.fetch_packages(CACHE))


@pytest.fixture(scope="module")
def drawings(catalogue):
    return {artist.key: catalogue.drawings(artist) for artist in ARTISTS}


@pytest.fixture(scope="module")
def whole_list(catalogue, drawings):
    """Return the list of the complete corpus without its scenes, as dictionaries; nothing is rendered."""
    training, _ = train_and_test(catalogue, drawings)
    return training_table(training, [], plant(catalogue, training), "http://127.0.0.1:1").to_pylist()


@pytest.mark.slow
def test_whole_list_keeps_the_rules(catalogue, whole_list):
    assert len(whole_list) + Corpus.scenes == load_source("demo").expected_count
    good = [row for row in whole_list if row["planted"] == ""]
    assert len(good) > 10_000
    assert {row["artist"] for row in whole_list} == {a.key for a in ARTISTS if not a.test}
    assert not any("fluent" in row["url"] for row in whole_list)
    assert not {row["concept"] for row in whole_list} & catalogue.held_out
    assert max(Counter(row["caption"].lower() for row in good).values()) <= 7  # one a trained artist
    assert len({row["url"] for row in whole_list}) == len(whole_list)
    tones = Counter((r["artist"], r["concept"]) for r in good if "skin tone" in r["label"])
    assert 0 < max(tones.values()) <= 2
    assert len({row["group"] for row in good}) == len({row["label"] for row in good})


@pytest.mark.slow
def test_no_test_picture_is_trained_on(corpus):
    """None has the pixels of a picture of the list, whatever the bytes of the files are."""
    rows = pq.read_table(corpus / "list.parquet").to_pylist()
    files = [corpus / row["url"].removeprefix("http://127.0.0.1:8901/") for row in rows if not row["planted"]]
    trained = {Image.open(file).convert("RGB").tobytes() for file in files}
    tars = sorted(corpus.glob("eval/*/test/*.tar"))
    assert len({path.parts[-3] for path in tars}) == len(list((corpus / "eval").iterdir()))
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".png") and member.name.count(".") == 1:  # and no mask
                    assert Image.open(tar.extractfile(member)).convert("RGB").tobytes() not in trained, path


@pytest.mark.slow
def test_two_builds_are_equal_to_the_byte(corpus, tmp_path):
    again = build(tmp_path / "again")
    files = {f.relative_to(corpus) for f in corpus.rglob("*") if f.is_file()}
    assert files == {f.relative_to(again) for f in again.rglob("*") if f.is_file()}
    assert [f for f in sorted(files) if (corpus / f).read_bytes() != (again / f).read_bytes()] == []


@pytest.mark.slow
def test_benchmarks_read_as_clip_benchmark_reads_them(corpus):
    rows = pq.read_table(corpus / "list.parquet").to_pylist()
    trained = {row["label"] for row in rows if not row["planted"] and ";" not in row["label"]}
    names = sorted(p.name for p in (corpus / "eval").iterdir())
    counts = json.loads((corpus / "corpus.json").read_text())["eval"]
    assert sorted(counts) == names
    for name in (name for name in names if not name.startswith("demo_scenes")):
        folder = corpus / "eval" / name
        retrieval = (folder / "dataset_type.txt").is_file()
        # the reader of clip_benchmark.datasets.builder.build_wds_dataset
        shards = int((folder / "test" / "nshards.txt").read_text())
        handler = wds.autodecode.ImageHandler("pil", extensions=["webp", "png", "jpg", "jpeg"])
        pattern = str(folder / "test" / f"{{0..{shards - 1}}}.tar")
        data = wds.WebDataset(pattern, nodesplitter=lambda src: src, shardshuffle=False).decode(handler)
        samples = list(data.to_tuple(["webp", "png", "jpg"], "txt" if retrieval else "cls", "mask.png", "json"))
        assert len(samples) == counts[name]["images"]
        classes = None if retrieval else (folder / "classnames.txt").read_text().splitlines()
        assert classes is None or len(set(classes)) == len(classes) == counts[name]["classes"]
        for image, target, mask, about in samples:
            assert image.size == mask.size == (SIDE, SIDE) and image.mode == "RGB"
            inside = np.asarray(mask.convert("L"))
            assert set(np.unique(inside)) <= {0, 255} and 0.02 < (inside > 0).mean() < 1
            assert about["artist"].startswith("fluent-emoji") == (name != "demo_test")
            assert (about["label"] in trained) <= (not about["unseen"])
            if classes is None:
                assert target == about["label"]
            elif name == "demo_skin_tone":
                assert about["label"].endswith(f": {classes[target]}")
            elif name != "demo_groups":
                assert classes[target] == about["label"]


@pytest.mark.slow
def test_the_test_split_is_kept_out_of_training_but_its_concepts_are_not(catalogue, drawings):
    training, own = train_and_test(catalogue, drawings)
    shown = {(d.artist, d.slug) for d in own}
    assert len(own) == len(shown) == len({d.emoji.concept for d in own}) > 450
    assert not shown & {(d.artist, d.slug) for d in training}
    assert {d.emoji.concept for d in own} <= {d.emoji.concept for d in training if not d.emoji.tones}
    assert len({d.artist for d in own}) == sum(not a.test for a in ARTISTS)
