"""What cannot be used of a damaged set is counted by its reason, in memory as in ingest's list; the rest is read."""

import bz2
import gzip
import io
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filip.data.ingest import IngestConfig, _list_images, ingest
from filip.eval.formats import open_set
from filip.images.rgb import IMAGE_FILES
from filip.sets.image_set import open_images, recognise
from filip.sets.layout import Reading
from tests.data import own_images
from tests.data.own_images import CAPTIONS, picture, write_images
from tests.data.test_ingest import card
from tests.sets.test_one_reader import counted, retrieval_card
from tests.support.shards import write_tar, zst

GOOD = {"dog.png": ["a dog, that runs"], "two cats.png": ["cats"]}
# Lines of every list: name, captions, and why the image is not used.
BAD = [
    ("bridge #3.png", [], "no_caption"),
    ("gone.png", ["a picture that is not there"], "missing_file"),
    ("../elsewhere.png", ["a picture elsewhere"], "outside"),
    ("", ["a picture without a name"], "no_file"),
]
LISTED = [*((name, captions) for name, captions in GOOD.items()), *((name, captions) for name, captions, _ in BAD)]


def rows(*broken: str) -> bytes:
    """Return a table with a comma, and lines of it that are broken."""
    lines = [f'{name},"{caption}"' for name, captions in LISTED for caption in captions or [""]]
    return "\n".join(["image,caption", *lines, *broken, ""]).encode()


def json_lines() -> bytes:
    lines = [json.dumps({"image": name, "captions": captions}).encode() for name, captions in LISTED]
    return b"\n".join([*lines, lines[0][:-3], b'["a"]', b"\xff\x00\xe9"])


def json_list() -> bytes:
    listed = [{"filename": name, "caption": captions} for name, captions in LISTED]
    return json.dumps([*listed, 3, "x", None]).encode()


def parquet() -> bytes:
    file = io.BytesIO()
    columns = {"path": [name or None for name, _ in LISTED], "texts": [captions for _, captions in LISTED]}
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def coco() -> bytes:
    images = [{"id": number, "file_name": name} for number, (name, _) in enumerate(LISTED)]
    texts = [{"image_id": n, "caption": text} for n, (_, captions) in enumerate(LISTED) for text in captions]
    content = {"images": [*images, {"id": 99}], "annotations": [*texts, {"caption": "of what?"}, {"image_id": 98}]}
    return json.dumps(content).encode()


def karpathy() -> bytes:
    images = [
        {"filename": name, "split": "train", "imgid": number, "sentences": [{"raw": text} for text in captions]}
        for number, (name, captions) in enumerate(LISTED)
    ]
    lacking = [{key: value for key, value in images[0].items() if key != gone} for gone in ("filename", "sentences")]
    return json.dumps(
        {"images": [*images, *lacking, {**images[0], "filename": "café/tasse.png", "split": "test"}]}
    ).encode()


BROKEN = ("dog.png,one,two", "dog.png", 'x,"never closed')
LISTS: dict[str, tuple[Callable[[], bytes], dict[str, int]]] = {
    "captions.csv": (lambda: rows(*BROKEN), {"broken_line": 3}),
    "captions.csv.gz": (lambda: gzip.compress(rows(*BROKEN)), {"broken_line": 3}),
    "captions.csv.bz2": (lambda: bz2.compress(rows()), {}),
    "captions.csv.zst": (lambda: zst(rows()), {}),
    "metadata.jsonl": (json_lines, {"broken_line": 3}),
    "annotations.json": (json_list, {"broken_line": 3}),
    "list.parquet": (parquet, {}),
    "captions_val.json": (coco, {"broken_line": 2, "no_image": 1}),
    "dataset.json": (karpathy, {"broken_line": 2, "not_wanted": 1}),
}


@pytest.mark.parametrize("name", LISTS)
def test_what_a_list_names_is_read_or_has_a_reason(tmp_path: Path, name: str) -> None:
    content, broken = LISTS[name]
    place = write_images(tmp_path / "own") / name
    place.write_bytes(content())
    result = open_images(Reading(place))
    assert {item.name: item.captions for item in result.items} == GOOD
    assert dict(result.account.counts) == {**{why: 1 for _, _, why in BAD}, **broken}
    work = tmp_path / "work"
    work.mkdir()
    layout, parts, reading = recognise(Reading(place))
    config = IngestConfig("mine", out=str(work))
    _list_images(card(place), reading, layout, parts, work / "list.parquet", work, config)
    listed = pq.read_table(work / "list.parquet").to_pylist()
    # whether a file is there is seen when it is read
    there = {row["url"]: row["captions"] for row in listed if row["_problem"] is None and row["captions"]}
    assert {name: captions for name, captions in there.items() if name != "gone.png"} == GOOD
    assert len(listed) == len(GOOD) + result.account.counts.total()


def test_a_part_that_is_cut_off_costs_that_part(tmp_path: Path) -> None:
    place = Path(own_images.LAYOUTS["parquet_bytes"](tmp_path / "own"))
    whole = next(place.rglob("*.parquet"))
    before, reasons = counted(place)
    whole.with_name(whole.name.replace("0", "7", 1)).write_bytes(whole.read_bytes()[:90])
    assert counted(place) == (before, {**reasons, "unreadable": 1})


def test_a_line_of_a_table_is_read_or_counted(tmp_path: Path) -> None:
    """Latin-1, another system's ends of lines, too many and too few cells, odd quotes, bytes of a picture."""
    write_images(tmp_path)
    rows = [
        b"image,caption",
        b"dog.png,a caf\xe9 in Paris",
        "two cats.png,a café in Paris".encode(),
        b"dog.png,a dog, a cat, and a bird",
        b"dog.png",
        b'dog.png,"a dog that is never closed',
        b"\x89PNG\xff\x00\x01,\x02",
        b"two cats.png,a cat\rand a dog",
        b"two cats.png,sleep\r",
        b'two cats.png,"cats \\"Tom\\" and another"',
        b'bridge #3.png,"a bridge,',
        b'and ""water"""',
    ]
    (tmp_path / "captions.csv").write_bytes(b"\n".join(rows) + b"\n")
    result = open_images(Reading(tmp_path))
    texts = {item.name: item.captions for item in result.items}
    assert texts == {
        "dog.png": ["a café in Paris"],
        "two cats.png": ["a café in Paris", "a cat", "sleep"],
        "bridge #3.png": ['a bridge, and "water"'],
    }
    assert dict(result.account.counts) == {"broken_line": 6, "no_caption": 2}
    assert "6 lines that cannot be read, such as captions.csv:4 (it has 4 cells" in result.account.line()


def test_nothing_in_a_folder_vanishes_and_a_pipe_is_never_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own_images.text_beside(tmp_path / "own")
    own = tmp_path / "own"
    os.mkfifo(own / "9.jpg")
    os.mkfifo(own / "9.txt")
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(own)  # the name of a socket is short
        listening.bind("8.png")
    (own / "alone.txt").write_text("a caption without a picture")
    (own / "silent.png").write_bytes(picture("dog.png"))
    (own / "notes.pdf").write_bytes(b"%PDF")
    for name in ("a.jxl", "b.svg", *(["c.heic"] if ".heic" not in IMAGE_FILES else [])):
        (own / name).write_bytes(b"\0")
    (own / "a.txt").write_text("a picture of a kind that is not read")
    (own / "gone.png").symlink_to(tmp_path / "nowhere")
    (own / "gone.txt").write_text("a link that leads nowhere")
    (own / "circle").symlink_to(own)
    (own / "binary.png").write_bytes(picture("dog.png"))
    (own / "binary.txt").write_bytes(bytes(range(256)))
    formats = 3 if ".heic" not in IMAGE_FILES else 2
    expected = {
        "not_a_file": 4, "no_image": 1, "no_caption": 1, "other_file": 1, "format": formats, "missing_file": 1,
        "not_text": 1,
    }  # fmt: skip
    assert counted(own) == (len(CAPTIONS), expected)
    one = card(own)
    _, funnel = ingest(one, IngestConfig(one.name, out=str(tmp_path / "shards")))
    assert (funnel.n_out, dict(funnel.dropped)) == (len(CAPTIONS), expected)
    data = open_set(retrieval_card(str(own)), ".")
    assert len(data) == len(CAPTIONS)
    said = capsys.readouterr().err
    assert "4 that are not files" in said and "1 captions without a picture, such as alone.txt" in said


def test_links_out_of_the_folder_are_counted_and_not_followed(tmp_path: Path) -> None:
    """An archive from elsewhere must not make captions of files of this machine."""
    names = list(CAPTIONS)
    own = write_images(tmp_path / "own")
    (tmp_path / "secret.txt").write_text("the key of the house")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(picture(names[0]))
    (own / names[0]).with_suffix(".txt").symlink_to(tmp_path / "secret.txt")
    (own / names[1]).with_suffix(".txt").write_text("two cats")
    (own / "link").symlink_to(tmp_path / "elsewhere")
    one = card(own)
    _, funnel = ingest(one, IngestConfig(one.name, out=str(tmp_path / "shards")))
    assert (funnel.n_out, dict(funnel.dropped)) == (1, {"no_caption": 4, "outside": 2})
    given = ["link/a.png,a dog", f"{names[1]},two cats", f"{own / names[2]},a bridge", f"{tmp_path}/elsewhere/a.png,a"]
    (own / "captions.csv").write_text("\n".join(["image,caption", *given]))
    _, funnel = ingest(card(own / "captions.csv"), IngestConfig("mine", out=str(tmp_path / "table")))
    assert (funnel.n_out, dict(funnel.dropped)) == (2, {"outside": 2})
    followed = card(own / "captions.csv", follow_links=True)
    assert ingest(followed, IngestConfig("mine", out=str(tmp_path / "followed")))[1].n_out == 3


def test_every_key_of_a_tar_is_accounted_for(tmp_path: Path) -> None:
    members = [("0.png", picture("dog.png")), ("0.txt", b"a dog\nthat runs")]
    members += [("1.txt", b"no picture"), ("2.heif.txt", b"no picture"), ("3.jxl", b"\0"), ("3.txt", b"a caption")]
    members += [("4.png", picture("dog.png")), ("5.png", picture("dog.png")), ("5.jpg", picture("dog.png"))]
    members += [("5.txt", b"two pictures"), ("README", b"no suffix"), ("6.json", b"{}")]
    write_tar(tmp_path / "a.tar", members)
    assert counted(tmp_path) == (2, {"no_image": 3, "format": 1, "no_caption": 1, "second_image": 1, "other_file": 1})
