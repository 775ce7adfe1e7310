"""The demo corpus: what the list may hold, what is planted in it, what the test sets hold, and that it repeats."""

import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from filip.cli.command import compose_config
from filip.data.cards import load_source
from filip_demo import packages
from filip_demo.catalogue import Catalogue
from filip_demo.corpus import Corpus, main, train_and_test
from filip_demo.faulty_rows import plant
from filip_demo.packages import ARTISTS
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


@pytest.mark.slow
def test_whole_list_keeps_the_rules(catalogue, drawings):
    """It is that of the complete corpus without its scenes; nothing is rendered."""
    training, _ = train_and_test(catalogue, drawings)
    whole_list = training_table(training, [], plant(catalogue, training), "http://127.0.0.1:1").to_pylist()
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
def test_the_test_split_is_kept_out_of_training_but_its_concepts_are_not(catalogue, drawings):
    training, own = train_and_test(catalogue, drawings)
    shown = {(d.artist, d.slug) for d in own}
    assert len(own) == len(shown) == len({d.emoji.concept for d in own}) > 450
    assert not shown & {(d.artist, d.slug) for d in training}
    assert {d.emoji.concept for d in own} <= {d.emoji.concept for d in training if not d.emoji.tones}
    assert len({d.artist for d in own}) == sum(not a.test for a in ARTISTS)
