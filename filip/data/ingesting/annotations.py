"""One JSON of annotations for a folder of images: COCO's own (``captions_train2017.json``) and Karpathy's splits."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from filip.data.cards import SourceCard
from filip.data.ingesting.layout import Found, Layout, inside
from filip.errors import UserError


class Coco(Layout):
    """``images`` with file names, ``annotations`` with the captions: one image with all its captions."""

    about = "COCO's JSON of captions; the images are in image_root, or beside the JSON"

    def parts(self, images: Path, card: SourceCard) -> list[Path]:
        content = _content(images)
        return (
            [images] if all(isinstance(content.get(key), list) for key in ("images", "annotations")) else []
        )

    def find(self, part: Path, card: SourceCard, scratch: Path) -> Iterator[Found]:
        content = _content(part)
        captions: dict[Any, list[str]] = defaultdict(list)
        for annotation in content["annotations"]:
            if "caption" in annotation:
                captions[annotation["image_id"]].append(str(annotation["caption"]))
        for image in content["images"]:
            path, problem = inside(_root(part, card), str(image["file_name"]))
            yield Found(
                str(image["file_name"]), captions[image["id"]], path, group=str(image["id"]), problem=problem
            )


class Karpathy(Layout):
    """Karpathy's split files of COCO and Flickr30k; the card's ``split`` chooses ("train+restval")."""

    about = (
        "one of Karpathy's split files (dataset_flickr30k.json); the images are in image_root, or beside it"
    )

    def parts(self, images: Path, card: SourceCard) -> list[Path]:
        listed: Any = _content(images).get("images")
        known = isinstance(listed, list) and listed and isinstance(listed[0], dict)
        return [images] if known and {"split", "filename", "sentences"} <= set(listed[0]) else []

    def find(self, part: Path, card: SourceCard, scratch: Path) -> Iterator[Found]:
        listed = _content(part)["images"]
        splits = sorted({image["split"] for image in listed})
        wanted = card.split.split("+") if card.split else splits
        unknown = sorted(set(wanted) - set(splits))
        if unknown:
            raise UserError(f"{part} has no split {', '.join(unknown)}; it has {', '.join(splits)}")
        for image in listed:
            if image["split"] in wanted:
                name = "/".join(piece for piece in (image.get("filepath", ""), image["filename"]) if piece)
                path, problem = inside(_root(part, card), name)
                captions = [sentence["raw"] for sentence in image["sentences"]]
                group = str(image.get("cocoid", image["imgid"]))
                yield Found(name, captions, path, group=group, problem=problem)


def _root(part: Path, card: SourceCard) -> Path:
    return Path(card.image_root) if card.image_root else part.parent


@lru_cache(maxsize=1)
def _content(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file; nothing for what is not one."""
    if path.suffix != ".json" or not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}); JSON lines end in .jsonl") from error
    return content if isinstance(content, dict) else {}
