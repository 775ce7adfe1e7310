"""An index of real image files: what it finds is what exact scoring finds, and it follows its folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from filip import load
from filip.command import compose_config, run_command
from filip.errors import UserError
from filip.eval.scorer import load_scorer
from filip.explore.gallery import Gallery, load_viewers
from filip.explore.pictures import open_pictures
from filip.index import build, export, store
from filip.index import tokens as tokens_module
from filip.index.store import About, Index
from filip.rgb import IMAGE_FILES
from filip.search import __main__ as search
from tests.eval.miniature import write_model

TEXTS = ["a red dog on the beach", "two black cats", "a lamp"]


def write_images(folder: Path, count: int, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(first, first + count):
        pixels = np.random.default_rng(n).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((60, 48), Image.Resampling.NEAREST).save(folder / f"photo #{n}.png")


EXACT = ("dtype=float32", "pool=1")


def build_index(folder: Path, model: str, *more: str) -> None:
    arguments = [f"model={model}", f"images={folder / 'photos'}", f"out={folder / 'index'}", "device=cpu"]
    run_command(build.main, build.Build, argv=[*arguments, "batch_size=8", *EXACT, *more])


def exact(model: str, paths: list[Path], text: str) -> list[tuple[str, float]]:
    scores = load(model, device="cpu").similarity([str(path) for path in paths], [text]).t2i[:, 0]
    return sorted(zip((path.name for path in paths), scores.tolist(), strict=True), key=lambda hit: -hit[1])


@pytest.fixture(scope="module", params=["token_wise", "pooled"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("indexed")
    model = write_model(folder / "model.safetensors", request.param, seed=1)
    write_images(folder / "photos", 40)
    build_index(folder, model)
    return folder, model


@pytest.mark.parametrize("text", TEXTS)
def test_it_finds_what_exact_scoring_of_all_images_finds(built: tuple[Path, str], text: str) -> None:
    folder, model = built
    index = Index.open(folder / "index")
    hits = index.search(load_scorer(model), text, 10)
    index.close()
    expected = exact(model, sorted((folder / "photos").iterdir()), text)[:10]
    assert [hit.path for hit in hits] == [path for path, _ in expected]
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_the_command_prints_and_writes_the_same_list(
    built: tuple[Path, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, _ = built
    arguments = [
        f"images={folder / 'index'}",
        "where=false",
        "text=a lamp, it's red",
        "count=3",
        f"out={tmp_path / 'hits.json'}",
    ]
    run_command(search.main, search.Search, argv=[*arguments, "device=cpu"])
    hits = json.loads((tmp_path / "hits.json").read_text())["hits"]
    printed = capsys.readouterr().out.splitlines()
    assert len(hits) == len(printed) == 3
    assert [line.split(maxsplit=3)[3] for line in printed] == [
        str(folder / "photos" / h["path"]) for h in hits
    ]


def test_a_second_build_encodes_what_is_new_or_changed_and_forgets_what_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    found = index.stamps().keys()
    assert "more/photo #100.png" in found and "photo #0.png" not in found and len(found) == len(index)
    index.close()


def test_an_interrupted_build_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "model.safetensors", "token_wise", seed=1)
    write_images(tmp_path / "photos", 30)
    add, calls = Index.add, []

    def interrupted(self, *arguments) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(arguments)
        add(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises((KeyboardInterrupt, SystemExit)):
        patched.setattr(Index, "add", interrupted)
        build_index(tmp_path, model)
    build_index(tmp_path, model)
    assert "30 images; 14 encoded, 16 already there" in capsys.readouterr().err


def test_half_precision_takes_half_the_bytes_and_finds_nearly_the_same(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors", "token_wise", seed=1)
    write_images(tmp_path / "photos", 10)
    build_index(tmp_path, model, "dtype=float16")
    index = Index.open(tmp_path / "index")
    (path, tokens), *_ = index.tokens()
    whole = load(model, device="cpu").encode_images([str(tmp_path / "photos" / path)])[0]
    assert torch.allclose(tokens, whole, atol=1e-3) and not torch.equal(tokens, whole)
    index.close()


def test_by_default_similar_patches_are_averaged_and_rounded_and_keep_their_places(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors", "token_wise", seed=1)
    write_images(tmp_path / "photos", 10)
    build_index(tmp_path, model, "dtype=int8", "pool=4")
    index = Index.open(tmp_path / "index")
    (path, tokens), *_ = index.tokens()
    whole = load(model, device="cpu").encode_images([str(tmp_path / "photos" / path)])[0]
    assert len(tokens) == len(whole) // 4
    assert torch.allclose(tokens.norm(dim=-1), torch.ones(len(tokens)), atol=1e-5)
    placed = index.tokens_of(path)
    assert placed.shape == whole.shape
    assert float((placed * whole).sum(-1).mean()) > float((tokens[0] * whole).sum(-1).mean())
    scorer = load_scorer(model)
    texts = scorer.encode_texts(["a lamp"])
    by_place = torch.stack(
        [scorer.similarity(index.tokens_of(p)[None], texts).t2i[0, 0] for p in index.paths]
    )
    assert torch.allclose(index.scores(scorer, texts), by_place, atol=1e-5)
    index.close()


def test_of_many_pictures_the_best_by_integers_are_scored_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = load_scorer(write_model(tmp_path / "model.safetensors", "token_wise", seed=1))
    texts = scorer.encode_texts(["a red dog on the beach"])
    dim = texts.values.shape[1]
    near = texts.values[
        torch.randint(len(texts.values), (400, 5), generator=torch.Generator().manual_seed(0))
    ]
    noise = torch.randn(400, 5, dim, generator=torch.Generator().manual_seed(1))
    tokens = torch.nn.functional.normalize(near + noise / 3, dim=-1)
    about = About("-", "-", 32, True, dim, "int8", "-")
    index = Index.create(tmp_path / "index", about)
    index.add([f"{n:03}" for n in range(400)], ["-"] * 400, tokens)
    index.remove(["007"])
    exact = index.scores(scorer, texts)
    found = index.search(scorer, "a red dog on the beach", 30)
    monkeypatch.setattr(store, "RERANKED", 40)
    monkeypatch.setattr(tokens_module, "BLOCK", 4096)
    quick = index.scores(scorer, texts)
    best = exact.topk(30).indices
    assert torch.equal(quick[best], exact[best])
    assert 0 < float((quick - exact).abs().max()) < 0.01
    assert index.search(scorer, "a red dog on the beach", 30) == found
    index.close()


def test_mistakes_are_told_in_a_sentence(built: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = built
    other = write_model(tmp_path / "other.safetensors", "token_wise", seed=9)
    with pytest.raises(
        UserError,
        match=r"was made by the model .*model\.safetensors, not .*other\.safetensors: give another out=",
    ):
        build.main(build.Build(model=other, images=str(folder / "photos"), out=str(folder / "index")))
    with pytest.raises(UserError, match=r"is not the model that .* was built with"):
        search.main(search.Search(images=str(folder / "index"), text="a", model=other))
    with pytest.raises(UserError, match="no index at"):
        Index.open(tmp_path)
    with pytest.raises(UserError, match="text=  is empty"):
        compose_config(search.Search, [f"images={folder / 'index'}", "text= "])
    with pytest.raises(UserError, match="no image below"):
        build.main(build.Build(model=other, images=os.fspath(tmp_path), out=str(tmp_path / "i")))
    with pytest.raises(UserError, match=r"there is no file or folder '.*none'"):
        build.main(build.Build(model=other, images=str(tmp_path / "none"), out=str(tmp_path / "i")))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("about.json", '{"format": 3'),
        ("about.json", '{"format": 3}'),
        ("images.sqlite", None),
        ("images.sqlite", "no database, however long it may be" * 99),
        ("tokens-0.bin", None),
        ("tokens-0.bin", "cut off"),
    ],
)
def test_a_damaged_index_is_told_in_a_sentence(
    built: tuple[Path, str], tmp_path: Path, file: str, content: str | None
) -> None:
    folder, _ = built
    damaged = Path(shutil.copytree(folder / "index", tmp_path / "index")) / file
    if content is None:
        damaged.unlink()
    else:
        damaged.write_text(content)
    with pytest.raises(
        UserError, match=r"the index at .* is damaged \(.*\): delete it and build it again"
    ) as told:
        search.main(search.Search(images=str(tmp_path / "index"), text="a"))
    assert "\n" not in str(told.value)


def documented(word: str) -> str:
    """Return the code of docs/search.md that has a word."""
    page = (Path(__file__).resolve().parents[2] / "docs/search.md").read_text()
    return next(code for code in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if word in code)


def test_the_documented_code_prints_what_exact_scoring_finds(
    built: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, model = built
    (tmp_path / "photos.index").symlink_to(folder / "index")
    monkeypatch.chdir(tmp_path)
    exec(documented('Index.open("photos.index")'), {})
    found = [line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines()]
    expected = exact(model, sorted((folder / "photos").iterdir()), "a red bicycle")[:5]
    assert [path for path, _ in found] == [path for path, _ in expected]
    assert [float(score) for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)


@pytest.fixture(scope="module")
def exported(built: tuple[Path, str]) -> Path:
    folder, _ = built
    export.main(export.Export(index=str(folder / "index"), out=str(folder / "for_qdrant")))
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_qdrant_finds_with_the_documented_code_what_the_index_finds(
    exported: Path, built: tuple[Path, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdrant_client import QdrantClient

    _, model = built
    block = documented("QdrantClient")
    shown = {'QdrantClient("http://localhost:6333")': 'QdrantClient(":memory:")', "filip.safetensors": model}
    for before, after in {**shown, "a red bicycle": text}.items():
        assert before in block
        block = block.replace(before, after)
    monkeypatch.chdir(exported)
    namespace: dict[str, Any] = {}
    exec(block, namespace)
    assert isinstance(namespace["client"], QdrantClient)
    found = [(hit.payload["path"], hit.score / namespace["words"].shape[0]) for hit in namespace["hits"]]
    expected = exact(model, sorted((exported / "photos").iterdir()), text)[:10]
    assert [path for path, _ in found] == [path for path, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_the_explorer_takes_an_index_and_encodes_only_what_has_changed(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors", "token_wise", seed=1)
    write_images(tmp_path / "photos", 12)
    build_index(tmp_path, model)
    write_images(tmp_path / "photos", 1, first=50)
    (tmp_path / "photos/photo #0.png").unlink()
    (tmp_path / "photos/photo #2.png").replace(tmp_path / "photos/photo #1.png")
    viewers = load_viewers([model], [], "cpu")
    folder = Gallery.of(viewers, open_pictures(str(tmp_path / "photos"), None, None))
    encoded: list[int] = []
    encode = viewers[0].scorer.encode_images
    viewers[0].scorer.encode_images = lambda pixels: encoded.append(len(pixels)) or encode(pixels)
    index = Gallery.of(viewers, open_pictures(str(tmp_path / "index"), None, None))
    assert index.keys == folder.keys and encoded == [2]  # the new one and the one that has changed
    assert torch.allclose(index.features[0].scored, folder.features[0].scored, atol=1e-6)


def test_pictures_that_are_not_read_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "model.safetensors", "pooled")
    write_images(tmp_path / "photos", 2)
    for name in ("a.CR2", "b.cr2", "c.svg", "d.jxl", "notes.txt", ".hidden.svg"):
        (tmp_path / "photos" / name).write_bytes(b"\0")
    build_index(tmp_path, model)
    assert (
        "0 unreadable; left out: 2 .cr2, 1 .jxl, 1 .svg (these formats are not read)"
        in capsys.readouterr().err
    )
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.dng").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"no image below .*; left out: 1 \.dng"):
        open_pictures(str(tmp_path / "raw"), None, None)


def test_pictures_of_phones_are_read_where_pillow_heif_is_installed_and_else_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "model.safetensors", "pooled")
    write_images(tmp_path / "photos", 2)
    if ".heic" in IMAGE_FILES:
        Image.new("RGB", (60, 48), "red").save(tmp_path / "photos" / "IMG_1.HEIC", format="HEIF")
        build_index(tmp_path, model)
        assert "3 images; 3 encoded" in capsys.readouterr().err
    else:
        (tmp_path / "photos" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
        build_index(tmp_path, model)
        said = capsys.readouterr().err
        assert "2 images; 2 encoded" in said
        assert (
            "left out: 1 .heic (these formats are not read; `pip install pillow-heif` reads those of phones)"
            in said
        )


def test_a_name_that_is_no_text_costs_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "model.safetensors", "pooled")
    write_images(tmp_path / "photos", 2)
    os.rename(tmp_path / "photos" / "photo #1.png", os.fsencode(tmp_path / "photos") + b"/caf\xe9.png")
    build_index(tmp_path, model)
    said = capsys.readouterr().err
    assert "1 images; 1 encoded" in said and r"1 whose names are not UTF-8, such as b'caf\xe9.png'" in said


READER = """
import sys
from pathlib import Path
from filip.index.store import Index
last, opened = -1, 0
ended = False
while not ended:
    ended = Path(sys.argv[2]).exists()
    index = Index.open(sys.argv[1])
    count = sum(1 for _, tokens in index.tokens() if abs(tokens.norm(dim=-1) - 1).max() < 1e-3)
    assert count == len(index) >= last, (count, len(index), last)
    last, opened = count, opened + 1
    index.close()
print(last, opened)
"""


@pytest.mark.slow
def test_others_read_while_one_builds(tmp_path: Path) -> None:
    """Two readers open, read and close the index all the time; one of them used to end the build."""
    model = write_model(tmp_path / "model.safetensors", "token_wise", seed=1)
    write_images(tmp_path / "photos", 8)
    build_index(tmp_path, model)
    write_images(tmp_path / "photos", 240)
    done = tmp_path / "done"
    command = [sys.executable, "-c", READER, str(tmp_path / "index"), str(done)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        build_index(tmp_path, model, "batch_size=2")
        time.sleep(6)  # until both have started, however busy the machine is
    finally:
        done.touch()
    for reader in readers:
        printed, _ = reader.communicate(timeout=120)
        assert reader.returncode == 0
        last, opened = map(int, printed.split())
        assert last == 240 and opened >= 1


def test_a_reader_keeps_what_it_opened_while_tokens_move(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors", "token_wise", seed=1)
    write_images(tmp_path / "photos", 12)
    build_index(tmp_path, model)
    scorer = load_scorer(model)
    reader = Index.open(tmp_path / "index")
    before = reader.search(scorer, "a lamp", 12)
    for n in range(8):
        (tmp_path / "photos" / f"photo #{n}.png").unlink()
    build_index(tmp_path, model, "forget=true")
    assert [file.name for file in (tmp_path / "index").glob("tokens-*")] == ["tokens-1.bin"]
    write_images(tmp_path / "photos", 4, first=100)
    build_index(tmp_path, model)
    assert reader.search(scorer, "a lamp", 12) == before
    now = Index.open(tmp_path / "index")
    paths = sorted((tmp_path / "photos").iterdir())
    found = [(hit.path, hit.score) for hit in now.search(scorer, "a lamp")]
    expected = exact(model, paths, "a lamp")
    assert [path for path, _ in found] == [path for path, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)


KILLED = """
import os, random, sys, threading, time
from filip.index import build
random.seed(int(sys.argv[4]))
threading.Timer(random.uniform(0.0, 0.4), os.kill, (os.getpid(), 9)).start()
model, images, out = sys.argv[1:4]
build.main(build.Build(model, images, out, dtype="float32", pool=1, batch_size=1, device="cpu"))
"""


@pytest.mark.slow
def test_kill_9_of_a_build_loses_nothing_that_was_in_the_index(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors", "token_wise", seed=1)
    write_images(tmp_path / "photos", 60)
    places = [model, str(tmp_path / "photos"), str(tmp_path / "index")]
    held = 0
    for number in range(5):
        subprocess.run([sys.executable, "-c", KILLED, *places, str(number)], capture_output=True, check=False)
        if (tmp_path / "index/about.json").is_file():
            index = Index.open(tmp_path / "index")
            assert len(index) >= held
            held = len(index)
            index.close()
    build_index(tmp_path, model)
    index = Index.open(tmp_path / "index")
    expected = load(model, device="cpu").encode_images([str(tmp_path / "photos" / p) for p in index.stamps()])
    found = [tokens for _, tokens in index.tokens()]
    assert len(found) == 60 and torch.allclose(torch.stack(found), torch.stack(list(expected)), atol=1e-6)


def test_a_disk_that_is_not_there_makes_it_forget_nothing(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors", "pooled")
    write_images(tmp_path / "photos" / "disk", 15)
    write_images(tmp_path / "photos", 5, first=50)
    build_index(tmp_path, model)
    (tmp_path / "photos/disk").rename(tmp_path / "unmounted")
    with pytest.raises(UserError, match=r"15 of the 20 images .* if a disk is missing, mount it"):
        build.main(
            build.Build(
                model=model,
                images=str(tmp_path / "photos"),
                out=str(tmp_path / "index"),
                dtype="float32",
                pool=1,
                device="cpu",
            )
        )
    (tmp_path / "unmounted").rename(tmp_path / "photos/disk")
    index = Index.open(tmp_path / "index")
    assert len(index) == 20
    index.close()
    for n in range(10):  # few enough to be meant
        (tmp_path / f"photos/disk/photo #{n}.png").unlink()
    build_index(tmp_path, model)
    assert len(Index.open(tmp_path / "index")) == 10


def test_the_model_is_found_again_from_another_folder_and_missed_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path / "model.safetensors", "pooled")
    write_images(tmp_path / "photos", 3)
    monkeypatch.chdir(tmp_path)
    build_index(tmp_path, "model.safetensors")
    (tmp_path / "photos" / "photo #1.png").unlink()
    monkeypatch.chdir("/")
    search.main(search.Search(images=str(tmp_path / "index"), text="a", device="cpu"))
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3 and "1 of these are no longer there" in captured.err
    run = tmp_path / "run"
    run.mkdir()
    write_model(run / "model.safetensors", "pooled")
    first = build.weights_of(str(run))
    assert first == build.weights_of(str(run))
    write_model(run / "model.safetensors", "pooled", seed=7)
    assert build.weights_of(str(run)) != first


def test_a_full_disk_is_a_sentence_and_keeps_the_index(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors", "token_wise", seed=1)
    write_images(tmp_path / "photos", 6)
    build_index(tmp_path, model)
    index = Index.open(tmp_path / "index")
    features = torch.nn.functional.normalize(torch.randn(3, index._an_image, index.about.dim), dim=-1)
    index._table.execute("PRAGMA max_page_count = 1")
    many = [f"{n:03}-{'x' * 900}" for n in range(3 * 40)]
    with pytest.raises(
        UserError, match=r"cannot write to the index at .*full; what was in it before is kept"
    ):
        index.add(many, ["-"] * len(many), features.repeat(40, 1, 1))
    index.close()
    again = Index.open(tmp_path / "index")
    assert len(again) == 6 == sum(1 for _ in again.tokens())
