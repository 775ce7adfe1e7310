"""Read one JSON of annotations for a folder of images: COCO's (``captions_train2017.json``) and Karpathy's splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from filip.common.errors import UserError
from filip.sets.columns import one_line, texts
from filip.sets.layout import Reading, Row
from filip.sets.listed import SAMPLE, Listed, finder, lists_in, split_of_row
from filip.sets.tables import json_in


class _Annotations(Listed):
    def lists(self, reading: Reading) -> list[Path]:
        return lists_in(reading, [".json"], self.fits)


class Coco(_Annotations):
    """COCO's JSON: ``images`` with file names, ``annotations`` with the captions; an image has all its captions."""

    about = "COCO's JSON of captions and its images"

    def lists(self, reading: Reading) -> list[Path]:
        paths = super().lists(reading)  # COCO's archive has boxes and keypoints beside the captions
        captioned = [path for path in paths if any(_has(one, "caption") for one in _content(path)["annotations"][:100])]
        return captioned or paths

    def fits(self, path: Path) -> bool:
        content = _content(path)
        return all(isinstance(content.get(key), list) for key in ("images", "annotations"))

    def splits(self, part: Path, reading: Reading) -> Counter[str | None]:
        names = [str(image["file_name"]) for image in _content(part)["images"] if _is_image(image)]
        find = finder(part, reading, names[:SAMPLE])
        return Counter(split_of_row(None, find(name)[0], part, reading) for name in names)

    def find(self, part: Path, reading: Reading) -> Iterator[Row]:
        content, name = _content(part), reading.name_of(part)
        listed = [str(image["file_name"]) for image in content["images"][:SAMPLE] if _is_image(image)]
        find = finder(part, reading, listed)
        captions: dict[Any, list[str]] = defaultdict(list)
        unread: list[tuple[int, str]] = []
        images = {image["id"] for image in content["images"] if _is_image(image)}
        for number, entry in enumerate(content["annotations"], 1):
            if not _has(entry, "image_id") or not isinstance(entry["image_id"], int | str):
                unread.append((number, "broken_line: an annotation without image_id"))
            elif entry["image_id"] not in images:
                unread.append((number, f"no_image: an annotation of image {entry['image_id']}, which is not listed"))
            elif "caption" in entry:
                captions[entry["image_id"]] += one_line(texts(entry["caption"]))
        for number, image in enumerate(content["images"], 1):
            if not _is_image(image):
                problem = "broken_line: an image without id or file_name"
                yield Row(f"{name}: images {number}", [], f"{part}#{number}", problem=problem)
                continue
            url, lines = str(image["file_name"]), captions[image["id"]]
            path, trouble = find(url)
            split = split_of_row(None, path, part, reading)
            yield Row(url, lines, path or f"{part}#{number}", group=str(image["id"]), problem=trouble, split=split)
        for number, problem in unread:
            yield Row(f"{name}: annotations {number}", [], f"{part}#annotations {number}", problem=problem)


class Karpathy(_Annotations):
    """Karpathy's split files of COCO and Flickr30k; "train+restval" unless another ``split`` is asked for."""

    about = "one of Karpathy's split files (dataset_flickr30k.json) and its images"

    def fits(self, path: Path) -> bool:
        listed: Any = _content(path).get("images")
        return isinstance(listed, list) and any(_is_entry(entry) for entry in listed[:10])

    def splits(self, part: Path, reading: Reading) -> Counter[str | None]:
        return Counter(str(image["split"]) for image in _content(part)["images"] if _is_entry(image))

    def find(self, part: Path, reading: Reading) -> Iterator[Row]:
        listed, name = _content(part)["images"], reading.name_of(part)
        find = finder(part, reading, [_name(image) for image in listed[:SAMPLE] if _is_entry(image)])
        for number, image in enumerate(listed, 1):
            if not _is_entry(image):
                problem = "broken_line: an entry without split, filename or sentences"
                yield Row(f"{name}: images {number}", [], f"{part}#{number}", problem=problem)
                continue
            url = _name(image)
            path, trouble = find(url)
            captions, split = one_line(texts(image["sentences"])), str(image["split"])
            group = str(image.get("cocoid", image.get("imgid", number)))
            yield Row(url, captions, path or f"{part}#{number}", group=group, problem=trouble, split=split)


def _name(image: Mapping[str, Any]) -> str:
    return "/".join(str(piece) for piece in (image.get("filepath", ""), image["filename"]) if piece)


def _is_image(value: Any) -> bool:
    return _has(value, "id", "file_name") and isinstance(value["id"], int | str)


def _is_entry(value: Any) -> bool:
    return _has(value, "split", "filename", "sentences") and isinstance(value["sentences"], list)


def _has(value: Any, *keys: str) -> bool:
    return isinstance(value, Mapping) and all(key in value for key in keys)


@lru_cache(maxsize=4)
def _content(path: Path) -> Mapping[str, Any]:
    """Return the JSON object in a file; an empty one if it holds none."""
    if path.suffix != ".json" or not path.is_file():
        return {}
    try:
        content = json_in(path)
    except UserError:
        return {}  # a table names its fault, unless it is one of JSON lines
    return content if isinstance(content, dict) else {}
