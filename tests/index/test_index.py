"""An index of real image files: what it finds is what exact scoring finds, and it follows its folder."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from filip import load
from filip.common.errors import UserError
from filip.eval.scorer import load_scorer
from filip.explore.gallery import Gallery, load_viewers
from filip.explore.pictures import open_pictures
from filip.index import store
from filip.index.store import About, Index
from filip.search import __main__ as search
from filip.search.ranking import query_of, rank
from tests.eval.miniature import write_model
from tests.index.folders import build_index, exact, index_of, write_images
from tests.support.manual import code_of

TEXTS = ["a red dog on the beach", "two black cats", "a lamp"]


@pytest.fixture(scope="module", params=["token_wise", "pooled"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("indexed")
    return folder, index_of(folder, 40, interaction=request.param)


def test_a_second_build_encodes_and_forgets_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "model.safetensors", "token_wise", seed=1)
    photos = tmp_path / "photos"
    write_images(photos, 20)
    (photos / "broken.jpg").write_bytes(b"no image")
    build_index(tmp_path, model)
    said = capsys.readouterr().err
    assert "20 images; 20 encoded, 0 already there, 0 gone, 1 unreadable" in said
    assert "left out broken.jpg" in said
    write_images(photos / "more", 3, first=100)
    (photos / "photo #0.png").unlink()
    (photos / "photo #2.png").replace(photos / "photo #1.png")
    build_index(tmp_path, model)
    assert "21 images; 4 encoded, 17 already there, 2 gone, 1 unreadable" in capsys.readouterr().err
    index = Index.open(tmp_path / "index")
    result = index.stamps().keys()
    assert "more/photo #100.png" in result and "photo #0.png" not in result and len(result) == len(index)
    index.close()


def test_by_default_all_patches_are_rounded_to_8_bits(tmp_path: Path) -> None:
    model = index_of(tmp_path, 10, "dtype=int8")
    index = Index.open(tmp_path / "index")
    (path, tokens), *_ = index.tokens()
    whole = load(model, device="cpu").encode_images([str(tmp_path / "photos" / path)])[0]
    assert torch.allclose(tokens, whole, atol=0.01) and not torch.equal(tokens, whole)
    assert torch.allclose(tokens.norm(dim=-1), torch.ones(len(tokens)), atol=1e-5)
    index.close()


def test_the_best_by_integers_are_scored_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = load_scorer(write_model(tmp_path / "model.safetensors", "token_wise", seed=1))
    texts = scorer.encode_texts(["a red dog on the beach"])
    dim = texts.values.shape[1]
    near = texts.values[torch.randint(len(texts.values), (400, 5), generator=torch.Generator().manual_seed(0))]
    noise = torch.randn(400, 5, dim, generator=torch.Generator().manual_seed(1))
    tokens = torch.nn.functional.normalize(near + noise / 3, dim=-1)
    about = About("-", "-", 32, True, dim, "int8", "-")
    index = Index.create(tmp_path / "index", about)
    index.add([f"{n:03}" for n in range(400)], ["-"] * 400, tokens)
    index.remove(["007"])
    exact = index.scores(scorer, texts)
    query = query_of(scorer, "a red dog on the beach", "all")
    results = [(hit.path, hit.score) for hit in rank(index, scorer, query)[:30]]
    monkeypatch.setattr(store, "RERANKED", 40)
    quick = index.scores(scorer, texts)
    best = exact.topk(30).indices
    assert torch.equal(quick[best], exact[best])
    assert 0 < float((quick - exact).abs().max()) < 0.01
    assert [(hit.path, hit.score) for hit in rank(index, scorer, query)[:30]] == results
    index.close()


def test_a_folder_without_an_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no index at"):
        Index.open(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("about.json", '{"format": 5'),
        ("about.json", '{"format": 5}'),
        ("about.json", '{"format": 5, "images": 5}'),
        ("images.sqlite", None),
        ("images.sqlite", "no database, however long it may be" * 99),
        ("tokens-0.bin", None),
        ("tokens-0.bin", "cut off"),
    ],
)
def test_a_damaged_index_is_refused(built: tuple[Path, str], tmp_path: Path, file: str, content: str | None) -> None:
    folder, _ = built
    damaged = Path(shutil.copytree(folder / "index", tmp_path / "index")) / file
    if content is None:
        damaged.unlink()
    else:
        damaged.write_text(content)
    with pytest.raises(UserError, match=r"the index at .* is damaged \(.*\): delete it and build it again") as message:
        search.main(search.Search(images=str(tmp_path / "index"), text="a"))
    assert "\n" not in str(message.value)


def test_the_documented_code_prints_what_exact_scoring_finds(
    built: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model = built
    (tmp_path / "photos.index").symlink_to(folder / "index")
    monkeypatch.chdir(tmp_path)
    exec(next(code for code in code_of("search.md") if 'Index.open("photos.index")' in code), {})
    results = [line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines()]
    expected = exact(model, sorted((folder / "photos").iterdir()), "a red bicycle", "content")[:5]
    assert [path for path, _ in results] == [path for path, _ in expected]
    assert [float(score) for _, score in results] == pytest.approx([score for _, score in expected], abs=1e-5)


@pytest.mark.parametrize("text", TEXTS)
def test_qdrant_finds_with_the_documented_code_what_the_index_finds(
    built: tuple[Path, str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdrant_client import QdrantClient

    folder, model = built
    (tmp_path / "photos.index").symlink_to(folder / "index")
    block = next(code for code in code_of("search.md") if "QdrantClient" in code)
    shown = {'QdrantClient("http://localhost:6333")': 'QdrantClient(":memory:")', "filip.safetensors": model}
    for before, after in {**shown, "a red bicycle": text}.items():
        assert before in block
        block = block.replace(before, after)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    exec(block, namespace)
    assert isinstance(namespace["client"], QdrantClient)
    results = [(hit.payload["path"], hit.score / namespace["words"].shape[0]) for hit in namespace["hits"]]
    expected = exact(model, sorted((folder / "photos").iterdir()), text)[:10]
    assert [path for path, _ in results] == [path for path, _ in expected]
    assert [score for _, score in results] == pytest.approx([score for _, score in expected], abs=1e-5)


@pytest.mark.parametrize("size", [(8064, 6048), (12_000, 9000), (16_320, 12_240), (16_000, 700)])
def test_photographs_of_any_number_of_pixels_are_indexed_searched_and_explored(
    tmp_path: Path, size: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "model.safetensors", "token_wise", seed=1)
    write_images(tmp_path / "photos", 8)
    Image.new("RGB", size, "red").save(tmp_path / "photos" / "large.jpg")
    build_index(tmp_path, model, "dtype=int8")
    assert "9 images; 9 encoded" in capsys.readouterr().err
    index, scorer = Index.open(tmp_path / "index"), load_scorer(model)
    query = query_of(scorer, str(tmp_path / "photos" / "large.jpg"))
    assert rank(index, scorer, query)[0].path == "large.jpg"
    index.close()
    assert (
        len(Gallery.of(load_viewers([model], [], "cpu"), open_pictures(str(tmp_path / "photos"), None, None)).keys) == 9
    )
