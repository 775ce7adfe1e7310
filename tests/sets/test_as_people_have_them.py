"""Folders as archives, hubs, phones and photographers' programs leave them are read without a card."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import load_dataset
from torchvision.datasets import Flickr30k

from filip.sets.image_set import open_images
from filip.sets.layout import Reading
from tests.data.own_images import CAPTIONS, COLOURS, picture
from tests.sets.test_one_reader import answers, colour, counted

ONE = {Path(name).name: captions[0] for name, captions in CAPTIONS.items()}  # a caption for each file


def images(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in CAPTIONS:
        (folder / Path(name).name).write_bytes(picture(name))
    return folder


def save(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def rows(path: Path, lines: list[tuple[str, ...]], delimiter: str = ",", first: str = "") -> None:
    text = io.StringIO(first)
    text.seek(0, io.SEEK_END)
    csv.writer(text, delimiter=delimiter).writerows(lines)
    path.write_bytes(text.getvalue().encode())


def coco_as_its_archives_unpack(root: Path) -> None:
    images(root / "train2017")
    listed = [{"id": n, "file_name": name} for n, name in enumerate(ONE)]
    texts = [{"image_id": n, "caption": caption} for n, caption in enumerate(ONE.values())]
    boxes = [{"image_id": n, "bbox": [0, 0, 9, 9], "category_id": 1} for n in range(len(ONE))]
    for kind, result in (("captions", texts), ("instances", boxes)):
        save(root / "annotations" / f"{kind}_train2017.json", {"images": listed, "annotations": result})


def hub_image_folder(root: Path) -> None:
    images(root / "train")
    lines = [json.dumps({"file_name": name, "text": caption}) for name, caption in ONE.items()]
    save(root / "train" / "metadata.jsonl", "\n".join(lines))


def flickr8k_of_kaggle(root: Path) -> None:
    images(root / "Images")
    rows(root / "captions.txt", [("image", "caption"), *ONE.items()])


def flickr30k_of_kaggle(root: Path) -> None:
    images(root / "flickr30k_images")
    lines = [(name, " 0", f" {caption}") for name, caption in ONE.items()]
    rows(root / "results.csv", [("image_name", " comment_number", " comment"), *lines], "|")


def flickr8k_tokens(root: Path) -> None:
    images(root / "Flicker8k_Dataset")
    save(root / "Flickr8k.token.txt", "".join(f"{name}#0\t{caption}\n" for name, caption in ONE.items()))


def karpathy_beside_its_images(root: Path) -> None:
    images(root / "flickr30k-images")
    listed = [{"filename": n, "split": "train", "sentences": [{"raw": caption}]} for n, caption in ONE.items()]
    save(root / "dataset_flickr30k.json", {"images": listed})


def llava(root: Path) -> None:
    images(root / "coco" / "train2017")
    talks = [
        {"id": n, "image": f"train2017/{name}", "conversations": [
            {"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": caption}]}
        for n, (name, caption) in enumerate(ONE.items())
    ]  # fmt: skip
    save(root / "llava_instruct_150k.json", json.dumps(talks, indent=1))


def takeout(root: Path) -> None:
    images(root)
    for n, (name, caption) in enumerate(ONE.items()):
        ending = (".json", ".supplemental-metadata.json", ".supplemental-met.json")[n % 3]
        save(root / f"{name}{ending}", {"title": name, "description": caption, "imageViews": "3"})


def windows_paths(root: Path) -> None:
    images(root / "Bilder")
    rows(
        root / "liste.csv",
        [("Datei", "Text"), *((f"Bilder\\{n.upper()}", c) for n, c in ONE.items())],
        ";",
        "sep=;\r\n",
    )


def columns_of_unusual_names(root: Path) -> None:
    images(root / "scans")
    rows(root / "katalog.csv", [("Nr", "Scan", "Legende"), *((str(i), n, c) for i, (n, c) in enumerate(ONE.items()))])


FOLDERS: list[Callable[[Path], None]] = [
    coco_as_its_archives_unpack, hub_image_folder, flickr8k_of_kaggle, flickr30k_of_kaggle, flickr8k_tokens,
    karpathy_beside_its_images, llava, takeout, windows_paths, columns_of_unusual_names,
]  # fmt: skip


@pytest.mark.parametrize("write", FOLDERS)
def test_it_is_read_as_it_is_by_all_four_readers(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "own")
    expected = {COLOURS[name]: captions[:1] for name, captions in CAPTIONS.items()}
    assert answers(str(tmp_path / "own"), tmp_path / "shards") == [expected] * 4


def test_the_libraries_of_two_forms_read_the_same(tmp_path: Path) -> None:
    """The hub's folder is read by `datasets`, Flickr's tokens by torchvision."""
    hub_image_folder(tmp_path / "hub")
    hub = load_dataset("imagefolder", data_dir=str(tmp_path / "hub"), cache_dir=str(tmp_path / "cache"), split="train")
    by_name = {COLOURS[name]: captions[0] for name, captions in CAPTIONS.items()}
    assert {colour(row["image"]): row["text"] for row in hub} == by_name
    flickr8k_tokens(tmp_path / "flickr")
    flickr = Flickr30k(str(tmp_path / "flickr/Flicker8k_Dataset"), str(tmp_path / "flickr/Flickr8k.token.txt"))
    assert {colour(picture): captions[0] for picture, captions in flickr} == by_name


def test_a_table_of_something_else_in_a_folder_below_is_no_list(tmp_path: Path) -> None:
    place = images(tmp_path / "own")
    for name, caption in ONE.items():
        (place / name).with_suffix(".txt").write_text(caption)
    save(place / "bills" / "prices.csv", "article,price\nfilm,3\n")
    assert counted(place) == (5, {"other_file": 1})


def test_of_several_pictures_with_one_name_none_is_taken(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        images(tmp_path / folder)
    (tmp_path / "b" / "dog.png").unlink()
    rows(tmp_path / "captions.csv", [("image", "caption"), *ONE.items()])
    assert counted(tmp_path) == (1, {"missing_file": 4, "no_caption": 8})


def test_a_name_in_two_splits_is_the_picture_of_its_list_s_split(tmp_path: Path) -> None:
    """Programs for annotation number the pictures of each split from 0."""
    for split in ("train", "val"):
        images(tmp_path / f"{split}2017")
        listed = [{"id": n, "file_name": name} for n, name in enumerate(ONE)]
        texts = [{"image_id": n, "caption": f"{caption} of {split}"} for n, caption in enumerate(ONE.values())]
        save(tmp_path / "annotations" / f"captions_{split}2017.json", {"images": listed, "annotations": texts})
    for split in ("train", "val"):
        items = open_images(Reading(tmp_path, split=split)).items
        assert [Path(item.file).parent.name for item in items] == [f"{split}2017"] * 5
        assert [item.captions for item in items] == [[f"{caption} of {split}"] for caption in ONE.values()]


@pytest.mark.parametrize(
    "header", [("file", "label", "title", "description"), ("file", "text", "name", "long_description"), None]
)
def test_the_column_of_captions_is_no_title_no_label_and_no_first_row(
    tmp_path: Path, header: tuple[str, ...] | None
) -> None:
    images(tmp_path / "own")
    lines = [(name, "mug", f"Mug{n}", caption) for n, (name, caption) in enumerate(ONE.items())]
    rows(tmp_path / "own" / "rows.csv", [header, *lines] if header else [(line[0], line[1], line[3]) for line in lines])
    items = open_images(Reading(tmp_path / "own")).items
    assert {item.name: item.captions for item in items} == {name: [caption] for name, caption in ONE.items()}
