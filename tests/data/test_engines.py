"""The translation engines: real models, in the files in which they are published."""

from pathlib import Path

import pytest

from filip.common.errors import UserError
from filip.data.engines import load_engine, round_trips
from filip.data.sidecar import read_sidecar
from filip.data.translate import translate
from tests.data.test_translate import job, make_shards

ROUND_TRIPS = {
    "the big dog likes the cat": "the large dog likes the cat",
    "the red house and the tree": "the red house and the tree",
    "": "",
    "big tree": "large tree",
    "cat sees the big green tree": "cat sees the large green tree",
}


@pytest.fixture(scope="module")
def marian_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from ctranslate2.converters import TransformersConverter

    from tests.data.tiny_marian import build_pair

    folder = tmp_path_factory.mktemp("models")
    build_pair(folder / "hub")
    # as ct2-transformers-converter does it
    for direction in ("en-de", "de-en"):
        converter = TransformersConverter(str(folder / "hub" / direction), copy_files=["source.spm", "target.spm"])
        converter.convert(str(folder / direction), quantization="int8")
    return folder


@pytest.mark.slow
def test_marian_translates_there_and_back(marian_models: Path) -> None:
    engine = load_engine("marian", "de", str(marian_models))
    texts = list(ROUND_TRIPS)
    assert round_trips(engine, texts) == list(ROUND_TRIPS.values())
    # the order of a batch, and what else is in it, change nothing
    assert round_trips(engine, texts[::-1] * 50) == list(ROUND_TRIPS.values())[::-1] * 50


@pytest.mark.slow
def test_a_model_that_nobody_converted_is_refused_with_the_command(marian_models: Path) -> None:
    with pytest.raises(UserError, match="`ct2-transformers-converter --model "):
        load_engine("marian", "de", str(marian_models / "hub"))


@pytest.mark.slow
def test_marian_from_shards_to_side_cars(marian_models: Path, tmp_path: Path, monkeypatch) -> None:
    captions = ["the big dog likes the cat", "the red house and the tree", "the big cat sees the dog"]
    make_shards(tmp_path / "shards", captions)
    marian = {"engine": "marian", "pivots": ["de"], "models": str(marian_models)}
    fragment = translate(*job(tmp_path, **marian))
    assert fragment is not None and fragment.dropped == {"identical": 1}
    (sidecar,) = (tmp_path / "captions").glob("*.parquet")
    assert [row["captions"] for row in read_sidecar(sidecar)] == [
        ["the big dog likes the cat", "the large dog likes the cat"],
        ["the red house and the tree"],
        ["the big cat sees the dog", "the large cat sees the dog"],
    ]
    assert read_sidecar(sidecar)[0]["origins"] == ["original", "marian:de"]
