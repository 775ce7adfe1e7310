"""An index loses nothing: to readers while it is built, kills, missing disks, moved folders and full disks."""

import time
from pathlib import Path

import pytest
import torch

from filip import load
from filip.common.errors import UserError
from filip.eval.scorer import load_scorer
from filip.index import build
from filip.index.store import Index
from filip.search import __main__ as search
from filip.search.ranking import query_of, rank
from tests.eval.miniature import write_model
from tests.index.folders import build_index, exact, index_of, write_images
from tests.support.processes import Process

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
    if opened == 1:
        print("opened", flush=True)
print(last, opened)
"""


@pytest.mark.slow
def test_others_read_while_one_builds(tmp_path: Path) -> None:
    """Two readers open, read and close the index all the time; one of them used to end the build."""
    model = index_of(tmp_path, 8)
    write_images(tmp_path / "photos", 240)
    done = tmp_path / "done"
    logs = [tmp_path / f"reader{number}.txt" for number in range(2)]
    for log in logs:
        log.touch()
    readers = [Process(["-c", READER, str(tmp_path / "index"), str(done)], log=log) for log in logs]
    try:
        while not all(log.read_text() for log in logs) and all(r.poll() is None for r in readers):
            time.sleep(0.02)
        build_index(tmp_path, model, "batch_size=2")
    finally:
        done.touch()
    for reader, log in zip(readers, logs, strict=True):
        assert reader.wait(120) == 0, log.read_text()
        last, opened = map(int, log.read_text().splitlines()[-1].split())
        assert last == 240 and opened >= 1


def test_a_reader_keeps_what_it_opened_while_tokens_move(tmp_path: Path) -> None:
    model = index_of(tmp_path, 12)
    scorer = load_scorer(model)
    reader = Index.open(tmp_path / "index")
    query = query_of(scorer, "a lamp", "all")
    before = rank(reader, scorer, query)
    for n in range(8):
        (tmp_path / "photos" / f"photo #{n}.png").unlink()
    build_index(tmp_path, model, "forget=true")
    assert [file.name for file in (tmp_path / "index").glob("tokens-*")] == ["tokens-1.bin"]
    write_images(tmp_path / "photos", 4, first=100)
    build_index(tmp_path, model)
    assert rank(reader, scorer, query) == before
    now = Index.open(tmp_path / "index")
    paths = sorted((tmp_path / "photos").iterdir())
    results = [(hit.path, hit.score) for hit in rank(now, scorer, query)]
    expected = exact(model, paths, "a lamp")
    assert [path for path, _ in results] == [path for path, _ in expected]
    assert [score for _, score in results] == pytest.approx([score for _, score in expected], abs=1e-5)


KILLED = """
import os, random, sys, threading
from filip.index import build
random.seed(int(sys.argv[4]))
pictures = random.randint(1, 20)  # that are opened before the kill: a time would be too late on a fast machine
listed = False  # pictures are opened for their descriptions, too, before the index is


def count(event, arguments):
    global pictures, listed
    listed |= event == "sqlite3.connect"
    if listed and event == "open" and str(arguments[0]).endswith(".png"):
        pictures -= 1
        if not pictures:
            threading.Timer(random.uniform(0.0, 0.01), os.kill, (os.getpid(), 9)).start()


sys.addaudithook(count)
model, images, out = sys.argv[1:4]
build.main(build.Build(model, images, out, dtype="float32", batch_size=1, device="cpu"))
"""


@pytest.mark.slow
def test_kill_9_of_a_build_loses_nothing_that_was_in_the_index(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors", "token_wise", seed=1)
    write_images(tmp_path / "photos", 60)
    places = [model, str(tmp_path / "photos"), str(tmp_path / "index")]
    held, ends = 0, []
    for number in range(5):
        ends.append(Process(["-c", KILLED, *places, str(number)]).wait())
        if (tmp_path / "index/about.json").is_file():
            index = Index.open(tmp_path / "index")
            assert len(index) >= held
            held = len(index)
            index.close()
    # else builds were over, or had not begun, when they were killed
    assert ends.count(-9) > 2 and held, (ends, held)
    build_index(tmp_path, model)
    index = Index.open(tmp_path / "index")
    expected = load(model, device="cpu").encode_images([str(tmp_path / "photos" / p) for p in index.stamps()])
    results = [tokens for _, tokens in index.tokens()]
    assert len(results) == 60 and torch.allclose(torch.stack(results), torch.stack(list(expected)), atol=1e-6)


def test_a_disk_that_is_not_there_makes_it_forget_nothing(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors", "pooled")
    write_images(tmp_path / "photos" / "disk", 15)
    write_images(tmp_path / "photos", 5, first=50)
    build_index(tmp_path, model)
    (tmp_path / "photos/disk").rename(tmp_path / "unmounted")
    with pytest.raises(UserError, match=r"15 of the 20 images .* if a disk is missing, mount it"):
        build.main(build.Build(model, str(tmp_path / "photos"), str(tmp_path / "index"), "float32", 1, device="cpu"))
    (tmp_path / "unmounted").rename(tmp_path / "photos/disk")
    index = Index.open(tmp_path / "index")
    assert len(index) == 20
    index.close()
    for n in range(10):  # few enough to be meant
        (tmp_path / f"photos/disk/photo #{n}.png").unlink()
    build_index(tmp_path, model)
    assert len(Index.open(tmp_path / "index")) == 10


def test_a_full_disk_is_a_sentence_and_keeps_the_index(tmp_path: Path) -> None:
    index_of(tmp_path, 6)
    index = Index.open(tmp_path / "index")
    features = torch.nn.functional.normalize(torch.randn(3, index._an_image, index.about.dim), dim=-1)
    index._table.execute("PRAGMA max_page_count = 1")
    many = [f"{n:03}-{'x' * 900}" for n in range(3 * 40)]
    with pytest.raises(UserError, match=r"cannot write to the index at .*full; what was in it before is kept"):
        index.add(many, ["-"] * len(many), features.repeat(40, 1, 1))
    index.close()
    again = Index.open(tmp_path / "index")
    assert len(again) == 6 == sum(1 for _ in again.tokens())


def test_a_moved_folder_is_known_and_another_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = index_of(tmp_path, 4, interaction="pooled")
    write_images(tmp_path / "others", 4, first=50)
    others = build.Build(model, str(tmp_path / "others"), str(tmp_path / "index"), "float32", 1, device="cpu")
    with pytest.raises(UserError, match=r"made of the images in .*photos, not in .*others: give another"):
        build.main(others)
    (tmp_path / "photos").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"made of the images in .*photos, not in .*others"):
        build.main(others)  # the disk of the photos may be missing
    searched = search.Search(images=str(tmp_path / "index"), text="a", device="cpu")
    capsys.readouterr()
    search.main(searched)
    assert "photos is not there: mount its disk, or if it was moved" in capsys.readouterr().err
    build_index(tmp_path, model, f"images={tmp_path / 'moved'}")
    assert "4 images; 0 encoded, 4 already there, 0 gone" in capsys.readouterr().err
    search.main(searched)
    captured = capsys.readouterr()
    assert str(tmp_path / "moved" / "photo #0.png") in captured.out and "not there" not in captured.err
