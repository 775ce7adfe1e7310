"""Read Karpathy's split files of COCO and Flickr30k (``dataset_coco.json``): one row per image and caption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from filip.data.cards import SourceCard
from filip.errors import UserError


def read_karpathy(path: Path, card: SourceCard) -> pa.Table:
    """Read the pairs of the splits named in ``card.split`` ("train+restval"), or of all splits.

    Columns: url (``card.image_root`` + path of the image), caption (as written), group (image id: captions
    of one image are positives of each other), filename, split. Raises UserError for an unknown split or a
    file with another structure.
    """
    if not card.image_root:
        raise UserError(f"{card.path}: key 'image_root' is needed: {path} holds file names, not URLs")
    images = _images(path)
    splits = sorted({image["split"] for image in images})
    wanted = card.split.split("+") if card.split else splits
    unknown = sorted(set(wanted) - set(splits))
    if unknown:
        raise UserError(f"{path} has no split {', '.join(unknown)}; it has {', '.join(splits)}")
    root = image_root(card.image_root)
    columns: dict[str, list[Any]] = {name: [] for name in ("url", "caption", "group", "filename", "split")}
    for image in images:
        if image["split"] not in wanted:
            continue
        name = "/".join(part for part in (image.get("filepath", ""), image["filename"]) if part)
        for sentence in image["sentences"]:
            columns["url"].append(root + name)
            columns["caption"].append(sentence["raw"])
            columns["group"].append(int(image.get("cocoid", image["imgid"])))
            columns["filename"].append(image["filename"])
            columns["split"].append(image["split"])
    return pa.table(columns)


def image_root(root: str) -> str:
    """Return ``root`` as a URL ending in a slash; a folder on this machine becomes ``file:///...``."""
    url = root if "://" in root else Path(root).resolve().as_uri()
    return url.rstrip("/") + "/"


def _images(path: Path) -> list[dict[str, Any]]:
    try:
        images = json.loads(path.read_text())["images"]
        if not all({"split", "filename", "sentences", "imgid"} <= set(image) for image in images):
            raise KeyError("split, filename, sentences, imgid")
        return images
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not one of Karpathy's split files ({error!r}); they are in caption_datasets.zip"
        ) from error
