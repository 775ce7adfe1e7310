"""The same few images with the same captions in every layout that people have, written by the libraries they use."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds
from PIL import Image

from tests.support.shards import encoded

# Names as people give them: `%25` is four characters here, not a percent sign.
CAPTIONS = {
    "dog.png": ["a dog runs on the beach"],
    "two cats.png": ["two cats on a red sofa", "cats that sleep"],
    "bridge #3.png": ["an old bridge over the river"],
    "100%25 sure.png": ["a man who is sure of himself"],
    "café/tasse.png": ["a cup of coffee on a table"],
}
COLOURS = {name: (20 + 40 * n, 200 - 30 * n, 60 * n) for n, name in enumerate(CAPTIONS)}


def picture(name: str, side: int = 240, kind: str = "PNG") -> bytes:
    """Return a picture of one colour, which tells which image it is."""
    return encoded(Image.new("RGB", (side, side), COLOURS[name]), kind)


def write_images(folder: Path) -> Path:
    for name in CAPTIONS:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(name))
    return folder


def text_beside(root: Path) -> str:
    for name, captions in CAPTIONS.items():
        path = write_images(root) / name
        path.with_suffix(".txt").write_text("\n".join(captions) + "\n")
    return str(root)


def table(root: Path) -> str:
    """Write one line per caption, as Flickr8k's captions.txt has them."""
    rows = [(name, caption) for name, captions in CAPTIONS.items() for caption in captions]
    with open(write_images(root) / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *rows])
    return str(root)


def parquet_bytes(root: Path) -> str:
    rows = {"jpg": [picture(name) for name in CAPTIONS], "caption": list(CAPTIONS.values())}
    root.mkdir(parents=True)
    pq.write_table(pa.table(rows), root / "part-0.parquet", row_group_size=2)
    return str(root)


def coco(root: Path) -> str:
    write_images(root)
    content = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(CAPTIONS)],
        "annotations": [
            {"image_id": n, "id": 10 * n + i, "caption": caption}
            for n, captions in enumerate(CAPTIONS.values())
            for i, caption in enumerate(captions)
        ],
    }
    (root / "captions_train2017.json").write_text(json.dumps(content))
    return str(root / "captions_train2017.json")


def tar(samples: list[dict]) -> Callable[[Path], str]:
    """Return a writer of a tar by the webdataset library."""

    def write(root: Path) -> str:
        root.mkdir(parents=True)
        with wds.TarWriter(str(root / "cc12m-0.tar"), encoder=False) as writer:
            for sample in samples:
                writer.write(sample)
        return str(root)

    return write


KEYS = {name: f"{n:04d}" for n, name in enumerate(CAPTIONS)}
WITH_JSON = [
    {
        "__key__": KEYS[name],
        "jpg": picture(name),
        "json": json.dumps({"captions": captions, "key": KEYS[name]}).encode(),
        "txt": captions[0].encode(),
    }
    for name, captions in CAPTIONS.items()
]
SEVERAL_EXTENSIONS = [
    {
        "__key__": KEYS[name],
        "image.png": picture(name),
        "meta.json": json.dumps({"uid": 3}).encode(),
        "captions.json": json.dumps(captions).encode(),
        "cls": b"7",
    }
    for name, captions in CAPTIONS.items()
]
LAYOUTS: dict[str, Callable[[Path], str]] = {
    "csv": table, "parquet_bytes": parquet_bytes, "coco": coco,
    "tar_json": tar(WITH_JSON), "tar_extensions": tar(SEVERAL_EXTENSIONS),
}  # fmt: skip
