"""The translation engines: real models, in the files in which they are published."""

import shutil
import threading
from pathlib import Path

import pytest

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
    from tests.data.tiny_marian import build_pair

    folder = tmp_path_factory.mktemp("models")
    build_pair(folder)
    return folder


@pytest.mark.slow
def test_marian_reads_the_hub_s_files_and_its_own_conversion(marian_models: Path, tmp_path: Path) -> None:
    engines = []
    # two processes of one run may both be the first to find the model unconverted
    threads = [
        threading.Thread(target=lambda: engines.append(load_engine("marian", "de", str(marian_models))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = list(ROUND_TRIPS)
    assert [round_trips(engine, texts) for engine in engines] == [list(ROUND_TRIPS.values())] * 2
    assert engines[0].model == engines[1].model
    # the order of a batch, and what else is in it, change nothing
    assert round_trips(engines[0], texts[::-1] * 50) == list(ROUND_TRIPS.values())[::-1] * 50
    # a folder that was converted beforehand, as ct2-transformers-converter leaves it
    for direction in ("en-de", "de-en"):
        shutil.copytree(marian_models / direction / "ctranslate2", tmp_path / direction)
    other = load_engine("marian", "de", str(tmp_path))
    assert round_trips(other, texts) == list(ROUND_TRIPS.values())
    assert other.model == engines[0].model, "same weights, same cache"


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
