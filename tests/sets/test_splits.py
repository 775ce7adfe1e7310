"""A split gives its own pictures alone, in all ways in which people, libraries and sites mark it, or is refused."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import webdataset as wds
from datasets.data_files import SPLIT_KEYWORDS
from PIL import Image

from filip.common.errors import UserError
from filip.common.tar_index import scan_tar
from filip.data.ingest import IngestConfig, ingest, resolve_card
from filip.sets.image_set import open_images
from filip.sets.layout import ALL, FOR_EVALUATION, SPLITS, Reading, is_picture

WHERE = {n: "test" if n % 4 == 3 else "train" for n in range(12)}  # three of twelve pictures are for the test
PICTURES = []
for n in range(12):
    Image.new("RGB", (32, 32), (20 * n, 100, 0)).save(data := io.BytesIO(), "PNG")
    PICTURES.append(data.getvalue())
Writer = Callable[[Path], object]
TEXTS = [f"a thing of colour {n}" for n in WHERE]


def put(folder: Path, number: int, text: bool = False) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number:04d}.png").write_bytes(PICTURES[number])
    if text:
        (folder / f"{number:04d}.txt").write_text(TEXTS[number])
    return f"{number:04d}.png"


def save(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def folders(train: str, test: str) -> Writer:
    """Put the pictures, each with a text, into two folders."""
    return lambda root: [put(root / (train if split == "train" else test), n, True) for n, split in WHERE.items()]


def table(name: str, values: Callable[[str], object] = str, file: str = "captions.csv") -> Writer:
    """Write a table over one folder, with a column for the split, by pandas."""

    def write(root: Path) -> None:
        rows = {"file_name": [f"images/{put(root / 'images', n)}" for n in WHERE], "caption": TEXTS}
        frame = pd.DataFrame(rows | {name: [values(split) for split in WHERE.values()]})
        if file.endswith(".csv"):
            frame.to_csv(root / file, index=False)
        elif file.endswith(".parquet"):
            frame.to_parquet(root / file)
        else:
            frame.to_json(root / file, orient="records", lines=True)

    return write


def tables(train: str, test: str | None) -> Writer:
    """Write a table for each split over one folder."""

    def write(root: Path) -> None:
        frame = pd.DataFrame({"file_name": [f"images/{put(root / 'images', n)}" for n in WHERE], "caption": TEXTS})
        for file, split in ((train, "train"), (test, "test")):
            if file:
                rows = frame[[where == split for where in WHERE.values()]]
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                rows.to_csv(root / file, index=False)

    return write


def metadata_in_folders(root: Path) -> None:
    for split in ("train", "test"):
        lines = [json.dumps({"file_name": put(root / split, n), "text": TEXTS[n]}) for n in WHERE if WHERE[n] == split]
        save(root / split / "metadata.jsonl", "\n".join(lines))


def metadata_over_folders(root: Path) -> None:
    names = [f"{split}/{put(root / split, n)}" for n, split in WHERE.items()]
    pd.DataFrame({"file_name": names, "text": TEXTS}).to_csv(root / "metadata.csv", index=False)


def names_beside(train: str, test: str, suffix: str = ".png", captions: str = "captions.txt") -> Writer:
    """Write Flickr8k's form: a table of all captions, and a list of names for each split."""

    def write(root: Path) -> None:
        names = {n: put(root / "Flicker8k_Dataset", n) for n in WHERE}
        if captions == "captions.txt":
            save(root / captions, "image,caption\n" + "".join(f"{names[n]},{TEXTS[n]}\n" for n in WHERE))
        else:
            save(root / captions, "".join(f"{names[n]}#0\t{TEXTS[n]}\n" for n in WHERE))
        for file, split in ((train, "train"), (test, "test")):
            listed = [Path(name).stem + suffix for n, name in names.items() if WHERE[n] == split]
            save(root / file, "\n".join(listed) + "\n")

    return write


def names_beside_texts(root: Path) -> None:
    for n in WHERE:
        put(root / "images", n, True)
    for split in ("train", "test"):
        save(root / f"{split}.txt", "".join(f"./images/{n:04d}.png\n" for n in WHERE if WHERE[n] == split))


def saved(which: str | None, **columns: list[Any]) -> datasets.Dataset:
    chosen = [n for n in WHERE if which in (None, WHERE[n])]
    rows = {"image": [{"bytes": PICTURES[n], "path": None} for n in chosen], "caption": [TEXTS[n] for n in chosen]}
    features = {"image": datasets.Image(), "caption": datasets.Value("string")}
    features |= {name: datasets.Value("string") for name in columns}
    return datasets.Dataset.from_dict(rows | columns, features=datasets.Features(features))


def parquet(train: str, test: str) -> Writer:
    def write(root: Path) -> None:
        for file, split in ((train, "train"), (test, "test")):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            saved(split).to_parquet(root / file)

    return write


def parquet_column(name: str, upper: bool = False) -> Writer:
    def write(root: Path) -> None:
        root.mkdir()
        values = [split.upper() if upper else split for split in WHERE.values()]
        saved(None, **{name: values}).to_parquet(root / "0000.parquet")

    return write


def tars(train: str, test: str) -> Writer:
    def write(root: Path) -> None:
        for file, split in ((train, "train"), (test, "test")):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            with wds.TarWriter(str(root / file)) as writer:
                for n in [n for n in WHERE if WHERE[n] == split]:
                    writer.write({"__key__": f"{n:04d}", "png": PICTURES[n], "txt": TEXTS[n]})

    return write


def json_in_tars(root: Path) -> None:
    root.mkdir()
    with wds.ShardWriter(str(root / "%05d.tar"), maxcount=5) as writer:
        for n, split in WHERE.items():
            writer.write({"__key__": f"{n:04d}", "png": PICTURES[n], "json": {"caption": TEXTS[n], "split": split}})


def karpathy(root: Path) -> None:
    listed = [
        {"filename": put(root / "images", n), "split": split, "sentences": [{"raw": TEXTS[n]}]}
        for n, split in WHERE.items()
    ]
    save(root / "dataset_flickr8k.json", {"images": listed})


def coco(root: Path) -> None:
    for split in ("train", "test"):
        images = [{"id": n, "file_name": put(root / f"{split}2017", n)} for n in WHERE if WHERE[n] == split]
        texts = [{"image_id": image["id"], "caption": TEXTS[image["id"]]} for image in images]
        save(root / "annotations" / f"captions_{split}2017.json", {"images": images, "annotations": texts})


def coco_over_one_folder(root: Path) -> None:
    """Write lists whose pictures are all in a folder of another name (Karpathy's test is of val2014)."""
    for split in ("train", "test"):
        images = [{"id": n, "file_name": put(root / "val2014", n)} for n in WHERE if WHERE[n] == split]
        texts = [{"image_id": image["id"], "caption": TEXTS[image["id"]]} for image in images]
        save(root / f"coco_karpathy_{split}.json", {"images": images, "annotations": texts})


WAYS: dict[str, Writer] = {
    "train/": folders("train", "test"),
    "training/": folders("training", "testing"),
    "Train/": folders("Train", "Test"),
    "Train Images/": folders("Train Images", "Test Images"),
    "train_images/": folders("train_images", "test_images"),
    "train_set/": folders("train_set", "test_set"),
    "train2014/": folders("train2014", "test2014"),
    "coco-train/": folders("coco-train", "coco-test"),
    "trainImages/": folders("trainImages", "testImages"),
    "images/train/": folders("images/train", "images/test"),
    "eval/": folders("train", "eval"),
    "holdout/": folders("train", "holdout"),
    "unseen/": folders("train", "unseen"),
    "split": table("split"),
    "Split": table("Split"),
    "set": table("set"),
    "partition": table("partition"),
    "subset": table("subset"),
    "is_test": table("is_test", lambda split: split == "test"),
    "is_test, 0 and 1": table("is_test", lambda split: int(split == "test")),
    "TRAIN": table("split", str.upper),
    "half of the rows": table("split", lambda split: "train" if split == "train" else None),
    "split in JSON lines": table("split", file="metadata.jsonl"),
    "Split in Parquet of paths": table("Split", file="captions.parquet"),
    "metadata.jsonl in folders": metadata_in_folders,
    "metadata.csv over folders": metadata_over_folders,
    "train.csv": tables("train.csv", "test.csv"),
    "test.csv alone": tables("", "test.csv"),
    "train.txt of names": names_beside("train.txt", "test.txt"),
    "Flickr8k": names_beside("Flickr_8k.trainImages.txt", "Flickr_8k.testImages.txt", captions="Flickr8k.token.txt"),
    "ImageSets": names_beside("ImageSets/Main/train.txt", "ImageSets/Main/test.txt", suffix=""),
    "train.txt of names, and texts": names_beside_texts,
    "the hub's Parquet": parquet("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
    "coco_karpathy": parquet("coco_karpathy_train.parquet", "coco_karpathy_test.parquet"),
    "Split in Parquet": parquet_column("Split"),
    "TRAIN in Parquet": parquet_column("split", upper=True),
    "train-0000.tar": tars("train-0000.tar", "test-0000.tar"),
    "cc3m": tars("cc3m-train-0000.tar", "cc3m-validation-0000.tar"),
    "mscoco": tars("mscoco_train2014_0.tar", "mscoco_test2014_0.tar"),
    "train/00000.tar": tars("train/00000.tar", "test/00000.tar"),
    "split in a tar's JSON": json_in_tars,
    "no split": folders("photos", "photos"),
    "Karpathy": karpathy,
    "COCO": coco,
    "COCO over val2014": coco_over_one_folder,
}
# splits that the set does not mark, or does not have
REFUSED = {
    "unseen/": ["test"], "half of the rows": ["test"], "test.csv alone": ["train"], "cc3m": ["test"],
    "no split": ["train", "test"],
}  # fmt: skip


def taken(place: Path, **settings: Any) -> list[int]:
    """Return the numbers of the pictures that are taken, by their colours."""
    result = open_images(Reading(place, **settings))
    colours = (Image.open(io.BytesIO(result.read(item))).getpixel((0, 0)) for item in result.items)
    return sorted(int(colour[0]) // 20 for colour in colours)


@pytest.mark.parametrize("way", WAYS)
def test_each_split_has_its_own_pictures_or_is_refused(tmp_path: Path, way: str) -> None:
    place = tmp_path / "own"
    WAYS[way](place)
    of = {split: [n for n in WHERE if WHERE[n] == split] for split in ("train", "test")}
    of[ALL] = of["test"] if way == "test.csv alone" else [*WHERE]
    for split, expected in of.items():
        if split in REFUSED.get(way, []):
            with pytest.raises(UserError, match=rf"no split {split}; .* Say which to take by `split`.*split=all"):
                taken(place, split=split)
        else:
            assert taken(place, split=split) == expected, split
    if way == "cc3m":
        assert taken(place, split="val") == of["test"]
        assert taken(place, split="train+val") == [*WHERE]
    if way == "no split":
        assert taken(place) == [*WHERE]
    elif way != "test.csv alone":
        assert taken(place) == of["train"]
        assert (
            taken(place, prefer=FOR_EVALUATION) == of["test" if way not in ("unseen/", "half of the rows") else "train"]
        )


def test_a_set_that_datasets_saved_is_refused_with_the_remedy(tmp_path: Path) -> None:
    saved(None).save_to_disk(tmp_path / "own")
    with pytest.raises(UserError, match=r"no captions that are understood.*to_parquet"):
        taken(tmp_path / "own")


def test_the_words_are_those_of_datasets() -> None:
    """`holdout` is the only word that is ours."""
    theirs = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}
    assert theirs | {"holdout": "test"} == SPLITS


def test_what_is_of_an_unknown_split_is_told_and_counted(tmp_path: Path) -> None:
    WAYS["half of the rows"](tmp_path)
    result = open_images(Reading(tmp_path))
    assert "splits: train 9, without 3; taken: train" in result.summary()
    assert "no split is noted for it (split=all takes it)" in result.summary()
    WAYS["is_test"](tmp_path / "b")
    assert (
        "splits: test 3, train 9, without 0; taken: test"
        in open_images(Reading(tmp_path / "b", split="test")).summary()
    )


def test_a_tar_with_other_splits_in_it_is_copied_without_them(tmp_path: Path) -> None:
    """A loader without side-cars reads whatever is in a tar."""
    WAYS["split in a tar's JSON"](tmp_path / "own")
    config = IngestConfig(str(tmp_path / "own"), out=str(tmp_path / "out"), image_rules={"min_side": 0})
    ingest(resolve_card(config), config)
    members = [member.name for tar in (tmp_path / "out").glob("*.tar") for member in scan_tar(tar)[0]]
    assert sum(is_picture(Path(name)) for name in members) == 9


def test_a_file_that_is_named_is_taken_unless_another_split_is_asked_for(tmp_path: Path) -> None:
    WAYS["test.csv alone"](tmp_path)
    assert len(taken(tmp_path / "test.csv")) == 3 == len(taken(tmp_path / "test.csv", split="test"))
    with pytest.raises(UserError, match="no split train; it has test"):
        taken(tmp_path / "test.csv", split="train")


@pytest.mark.parametrize("column", ["set", "subset", "partition"])
def test_columns_of_other_things_are_no_splits(tmp_path: Path, column: str) -> None:
    table(column, lambda split: "gqa" if split == "test" else "vg")(tmp_path)
    assert len(taken(tmp_path)) == 12
    with pytest.raises(UserError, match="no split train; it marks none"):
        taken(tmp_path, split="train")


def test_captions_and_pictures_with_such_names_are_no_lists(tmp_path: Path) -> None:
    for n in WHERE:
        put(tmp_path, n, True)
    for name in ("train", "test-1"):
        (tmp_path / f"{name}.png").write_bytes(PICTURES[0])
        (tmp_path / f"{name}.txt").write_text("0001\n")
    assert len(taken(tmp_path)) == 14
