"""One set, one answer: ingest, evaluation, explorer and index see the same images and the same captions."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from filip.common.errors import UserError
from filip.data.ingest import IngestConfig, ingest
from filip.eval.benchmark import BenchmarkCard
from filip.eval.formats import open_set
from filip.eval.formats.webdataset import WebdatasetFolder
from filip.eval.own_data import cards_of
from filip.explore.pictures import open_pictures
from filip.sets.image_set import SetPictures, open_images
from filip.sets.layout import Reading
from tests.data import own_images
from tests.data.own_images import CAPTIONS, COLOURS, picture, write_images
from tests.data.test_ingest import card, stored
from tests.support.shards import write_tar

Seen = dict[tuple[int, ...], list[str]]  # colour of an image → its captions


def colour(image: Image.Image) -> tuple[int, ...]:
    return tuple(int(value) for value in image.convert("RGB").getpixel((0, 0)))


def retrieval_card(place: str) -> BenchmarkCard:
    """Return the card of the pictures with captions at a place."""
    return next(card for card in cards_of(place) if card.kind == "retrieval")


def answers(place: str, out: Path) -> list[Seen]:
    """Return what ingest, evaluation, explorer and index see."""
    one = card(place)
    ingest(one, IngestConfig(one.name, out=str(out)))
    evaluated = open_set(retrieval_card(place), ".")
    samples = [evaluated[n] for n in range(len(evaluated))]
    shown = (open_pictures(place, None, None), SetPictures(Path(place), None))  # those that `filip index build` encodes
    seen = [{colour(one.image): one.captions for one in pictures if one.captions} for pictures in shown]
    return [stored(out), {colour(sample.image): sample.captions for sample in samples}, *seen]


def two_lines_and_another_suffix(root: Path) -> str:
    """Write the folder of the fault: three answers until there was one reader."""
    write_images(root)
    for number, (name, captions) in enumerate(CAPTIONS.items()):
        suffix = (".txt", ".caption", ".png.txt", ".png.caption", ".text")[number]
        (root / name).with_suffix(suffix).write_text("\n".join(captions) + "\n")
    return str(root)


def clip_benchmark(root: Path) -> str:
    """Write the train split, which evaluation takes if it finds no other."""
    samples = [
        {"__key__": f"s{n:07d}", "png": picture(name), "txt": "\n".join(captions).encode()}
        for n, (name, captions) in enumerate(CAPTIONS.items())
    ]
    own_images.tar(samples)(root / "train")
    (root / "train" / "cc12m-0.tar").rename(root / "train" / "0.tar")
    (root / "train" / "nshards.txt").write_text("1\n")
    (root / "dataset_type.txt").write_text("retrieval\n")
    return str(root)


def img2dataset_files(root: Path) -> str:
    """Write files as img2dataset does with output_format=files: a text and a record for each image."""
    root.mkdir(parents=True)
    for n, (name, captions) in enumerate(CAPTIONS.items()):
        (root / f"{n:09d}.jpg").write_bytes(picture(name))
        (root / f"{n:09d}.txt").write_text(captions[0])
        (root / f"{n:09d}.json").write_text(json.dumps({"captions": captions, "key": f"{n:09d}"}))
    return str(root)


LAYOUTS: dict[str, Callable[[Path], str]] = {
    **own_images.LAYOUTS,
    "two_lines_and_another_suffix": two_lines_and_another_suffix,
    "clip_benchmark": clip_benchmark,
    "img2dataset_files": img2dataset_files,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ingest_evaluation_explorer_and_index_see_the_same(tmp_path: Path, layout: str) -> None:
    expected = {COLOURS[name]: captions for name, captions in CAPTIONS.items()}
    place = LAYOUTS[layout](tmp_path / "own")
    assert answers(place, tmp_path / "shards") == [expected] * 4


def counted(place: Path, **settings: object) -> tuple[int, dict[str, int]]:
    result = open_images(Reading(place, **settings))  # type: ignore[arg-type]
    return len(result), dict(result.account.counts)


def test_a_tar_gives_the_same_captions_as_a_benchmark_and_as_a_set(tmp_path: Path) -> None:
    """Where a record has captions, as img2dataset's and Kaggle's do, they count before the text of the same name."""
    members: list[tuple[str, bytes]] = []
    for number, (name, texts) in enumerate(CAPTIONS.items()):
        members += [(f"s{number}.png", picture(name)), (f"s{number}.txt", b"a text\nof two lines\na text\n")]
        if number % 2:
            members.append((f"s{number}.json", json.dumps({"captions": texts, "caption": texts[0]}).encode()))
    write_tar(tmp_path / "set" / "test" / "0.tar", members)
    write_tar(tmp_path / "choices" / "test" / "0.tar", [*members[:2], ("s0.order.txt", b"true\nfalse")])
    for folder in ("set", "choices"):
        (tmp_path / folder / "test" / "nshards.txt").write_text("1")
        (tmp_path / folder / "dataset_type.txt").write_text("retrieval")
    assert WebdatasetFolder(tmp_path / "choices")[0].captions == ["a text", "of two lines"]
    data = WebdatasetFolder(tmp_path / "set")
    benchmark = {colour(sample.image): sample.captions for sample in (data[n] for n in range(len(data)))}
    images = open_images(Reading(tmp_path / "set", split="test"))
    as_a_set = {colour(Image.open(io.BytesIO(images.read(item)))): item.captions for item in images.items}
    assert benchmark == as_a_set and len(benchmark) == len(CAPTIONS)
    assert ["a text", "of two lines"] in benchmark.values() and [*CAPTIONS.values()][1] in benchmark.values()


def test_columns_without_a_header_are_named_by_the_card(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "captions.csv").write_text("dog.png,a dog; a cat; and a bird\ntwo cats.png,cats\n")
    reading = Reading(tmp_path / "captions.csv", columns=("image", "caption"))
    assert [item.captions for item in open_images(reading).items] == [["a dog; a cat; and a bird"], ["cats"]]


def test_the_output_in_the_folder_of_the_images_is_no_part_of_them(tmp_path: Path) -> None:
    one = card(own_images.text_beside(tmp_path / "own"))
    out = str(tmp_path / "own" / "shards")
    for _ in range(2):
        _, funnel = ingest(one, IngestConfig(one.name, out=out))
        assert (funnel.n_in, funnel.n_out) == (len(CAPTIONS), len(CAPTIONS))


def test_a_folder_with_a_table_of_something_else_can_be_looked_at(tmp_path: Path) -> None:
    write_images(tmp_path / "own")
    (tmp_path / "own" / "prices.csv").write_text("article,price\n1,2\n")
    pictures = open_pictures(str(tmp_path / "own"), None, None)
    assert len(pictures) == len(CAPTIONS)
    assert not [card for card in cards_of(str(tmp_path / "own")) if card.kind == "retrieval"]
    (tmp_path / "own" / "more.csv").write_text("image,caption\ndog.png,a dog\n")
    with pytest.raises(UserError, match=r"several tables \(more\.csv, prices\.csv\)"):
        retrieval_card(str(tmp_path / "own"))


def test_a_row_of_parquet_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    write_images(tmp_path / "own")
    (tmp_path / "secret.png").write_bytes(picture("dog.png"))
    (tmp_path / "own" / "link.png").symlink_to(tmp_path / "secret.png")
    paths = ["dog.png", "../secret.png", str(tmp_path / "secret.png"), "link.png"]
    rows = {"image": [{"bytes": None, "path": path} for path in paths], "caption": ["a dog"] * len(paths)}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("caption", pa.string())]
    )
    pq.write_table(pa.table(rows, schema), tmp_path / "own" / "rows.parquet")
    result = open_images(Reading(tmp_path / "own" / "rows.parquet"))
    assert result.read(result.items[0]) == picture("dog.png")
    for item in result.items[1:]:
        with pytest.raises(FileNotFoundError, match="holds no bytes, only the path"):
            result.read(item)
