"""An index of real image files: what it finds is what exact scoring finds, and it follows its folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from qdrant_client import QdrantClient

from filip import load
from filip.command import compose_config, run_command
from filip.errors import UserError
from filip.eval.scorer import load_scorer
from filip.explore.gallery import Gallery, load_viewers
from filip.explore.pictures import open_pictures
from filip.index import build, export, search
from filip.index.store import Index
from filip.rgb import IMAGE_FILES
from tests.eval.miniature import write_model

TEXTS = ["a red dog on the beach", "two black cats", "a lamp"]


def write_images(folder: Path, count: int, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(first, first + count):
        pixels = np.random.default_rng(n).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((60, 48), Image.Resampling.NEAREST).save(folder / f"photo #{n}.png")


def build_index(folder: Path, model: str, *more: str) -> None:
    arguments = [f"model={model}", f"images={folder / 'photos'}", f"out={folder / 'index'}", "device=cpu"]
    run_command(build.main, build.Build, argv=[*arguments, "batch_size=8", *more])


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
        f"index={folder / 'index'}",
        "text=a lamp, it's red",
        "count=3",
        f"out={tmp_path / 'hits.json'}",
    ]
    run_command(search.main, search.Search, argv=[*arguments, "device=cpu"])
    hits = json.loads((tmp_path / "hits.json").read_text())["hits"]
    printed = capsys.readouterr().out.splitlines()
    assert len(hits) == len(printed) == 3
    assert [line.split(maxsplit=2)[2] for line in printed] == [
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


def test_mistakes_are_told_in_a_sentence(built: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = built
    other = write_model(tmp_path / "other.safetensors", "token_wise", seed=9)
    with pytest.raises(
        UserError,
        match=r"was made by the model .*model\.safetensors, not .*other\.safetensors: give another out=",
    ):
        build.main(build.Build(model=other, images=str(folder / "photos"), out=str(folder / "index")))
    with pytest.raises(UserError, match=r"is not the model that .* was built with"):
        search.main(search.Search(index=str(folder / "index"), text="a", model=other))
    with pytest.raises(UserError, match="no index at"):
        search.main(search.Search(index=str(tmp_path), text="a"))
    with pytest.raises(UserError, match="text=  is empty"):
        compose_config(search.Search, [f"index={folder / 'index'}", "text= "])
    with pytest.raises(UserError, match="no image below"):
        build.main(build.Build(model=other, images=os.fspath(tmp_path), out=str(tmp_path / "i")))
    with pytest.raises(UserError, match=r"there is no file or folder '.*none'"):
        build.main(build.Build(model=other, images=str(tmp_path / "none"), out=str(tmp_path / "i")))
    with pytest.raises(UserError, match="to=faiss: to takes qdrant, vespa"):
        compose_config(export.Export, [f"index={folder / 'index'}", "to=faiss", f"out={tmp_path}"])


@pytest.mark.parametrize(
    ("file", "content"), [("about.json", '{"format": 1'), ("about.json", '{"format": 1}'), ("store", None)]
)
def test_a_damaged_index_is_told_in_a_sentence(
    built: tuple[Path, str], tmp_path: Path, file: str, content: str | None
) -> None:
    folder, _ = built
    damaged = Path(shutil.copytree(folder / "index", tmp_path / "index")) / file
    if content is None:
        shutil.rmtree(damaged)
    else:
        damaged.write_text(content)
    with pytest.raises(
        UserError, match=r"the index at .* is damaged \(.*\): delete it and build it again"
    ) as told:
        search.main(search.Search(index=str(tmp_path / "index"), text="a"))
    assert "\n" not in str(told.value)


@pytest.fixture(scope="module")
def exported(built: tuple[Path, str]) -> Path:
    folder, _ = built
    for to in ("qdrant", "vespa"):
        export.main(export.Export(index=str(folder / "index"), to=to, out=str(folder / f"for_{to}")))
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_qdrant_finds_with_the_documented_code_what_the_index_finds(
    exported: Path, built: tuple[Path, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = built
    page = (Path(__file__).resolve().parents[2] / "docs/search.md").read_text()
    block = next(b for b in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if "QdrantClient" in b)
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


def test_the_feed_of_vespa_is_of_the_type_that_its_schema_declares(exported: Path) -> None:
    """Vespa's document JSON format: a mixed tensor with one mapped dimension is {"blocks": {label: [values]}}."""
    schema = (exported / "for_vespa/image.sd").read_text()
    assert schema.count("{") == schema.count("}")
    name, dim = re.search(r"field (\w+) type tensor<float>\(patch\{\}, x\[(\d+)\]\)", schema).groups()
    fields = set(re.findall(r"field (\w+) type", schema))
    ids = set()
    for line in (exported / "for_vespa/feed.jsonl").read_text().splitlines():
        operation = json.loads(line, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
        assert operation.keys() == {"put", "fields"} and operation["fields"].keys() == fields
        assert re.fullmatch(r"id:image:image::\d+", operation["put"])  # id:<namespace>:<document-type>::<own>
        ids.add(operation["put"])
        tensor = operation["fields"][name]
        assert tensor.keys() == {"blocks"}
        assert all(isinstance(label, str) and len(row) == int(dim) for label, row in tensor["blocks"].items())
    assert len(ids) == 40


@pytest.mark.parametrize("text", TEXTS)
def test_the_rank_profile_of_vespa_ranks_the_feed_as_the_index_does(
    exported: Path, built: tuple[Path, str], text: str
) -> None:
    """Its expression, evaluated here: tensors are arrays whose axes are named by their dimensions."""
    _, model = built
    schema = (exported / "for_vespa/image.sd").read_text()
    expression = re.search(r"expression: (.*)", schema)[1]
    assert expression == "reduce(reduce(sum(query(words) * attribute(tokens), x), max, patch), avg, word)"
    texts = load_scorer(model).encode_texts([text])
    scores = {}
    for line in (exported / "for_vespa/feed.jsonl").read_text().splitlines():
        fields = json.loads(line)["fields"]
        tokens = torch.tensor(list(fields["tokens"]["blocks"].values()))
        product = texts.values.float() @ tokens.T  # sum(…, x): [word, patch]
        scores[fields["path"]] = product.amax(dim=1).mean().item()
    found = sorted(scores.items(), key=lambda hit: -hit[1])
    expected = exact(model, sorted((exported / "photos").iterdir()), text)
    assert [path for path, _ in found[:10]] == [path for path, _ in expected[:10]]
    assert dict(found) == pytest.approx(dict(expected), abs=1e-5)


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


def test_an_index_that_another_process_has_open_is_not_called_damaged(built: tuple[Path, str]) -> None:
    folder, _ = built
    program = "import sys; from filip.index.store import Index; i = Index.open(sys.argv[1]); print(flush=True); input()"
    command = [sys.executable, "-c", program, str(folder / "index")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        with pytest.raises(
            UserError, match=r"another process has the index .* open.*: try again when it has ended"
        ):
            Index.open(folder / "index")
        waiting = threading.Timer(1, other.communicate, ["\n"])
        waiting.start()
        Index.open(folder / "index").close()
        waiting.join()
