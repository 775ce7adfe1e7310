"""Webdataset tars, img2dataset's, open_clip's or others': image and caption share a key.

The key of a member is its name up to a dot: to the first, as webdataset has it (``0001.image.jpg`` and
``0001.caption.txt``), or to the last where names have dots in them (``photo.v2.jpg`` and ``photo.v2.txt``).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from filip.data.cards import SourceCard
from filip.data.ingesting.layout import (
    CAPTION_NAMES,
    Found,
    Layout,
    captions_of,
    files_in,
    texts,
)
from filip.data.loading.shard_index import IMAGE_SUFFIXES, split_key
from filip.data.loading.tar_index import Member, scan_tar
from filip.data.rgb import IMAGE_FILES

CAPTION_FILES = ("txt", "caption", "text", "json")  # in the order in which they are believed
MAX_CAPTION_BYTES = 1 << 20


class Sample(NamedTuple):
    """The files of one key."""

    key: str
    files: list[tuple[str, Member]]  # suffix (lower case) and member


class Tars(Layout):
    """``position`` and ``size`` are those of the image inside the tar, which is never unpacked."""

    about = "webdataset tars: KEY.jpg with KEY.txt or KEY.json"
    in_order = True
    shard_per_file = True

    def parts(self, images: Path, card: SourceCard) -> list[Path]:
        if images.is_file():
            return [images] if images.suffix == ".tar" else []
        return files_in(images, [".tar"])

    def find(self, part: Path, card: SourceCard, scratch: Path) -> Iterator[Found]:
        members, defect = scan_tar(part)
        file = str(part.absolute())
        if defect:
            yield Found(part.name, [], file, -1, problem=f"tar_{defect}: what comes after is lost")
        with open(part, "rb") as tar:
            for whole in _grouped(members):
                for sample in _split_by_last_dot(whole):
                    yield from _found(sample, whole, tar, part, card)


def _found(sample: Sample, whole: Sample, tar: BinaryIO, part: Path, card: SourceCard) -> Iterator[Found]:
    images = [(suffix, member) for suffix, member in sample.files if _is_image(suffix)]
    if not images:
        return
    captions, group = _captions(sample, tar, card)
    suffix, member = images[0]
    # a loader that reads the tar as it is takes the last image of a key, by webdataset's rule
    in_tar = [s for s, _ in whole.files if _is_image(s)]
    plain = sample is whole and in_tar == [suffix] and suffix in IMAGE_SUFFIXES
    yield Found(
        f"{part.name}/{member.name}",
        captions,
        str(part.absolute()),
        member.offset,
        member.size,
        group=group,
        key=sample.key if plain else None,
    )


def _is_image(suffix: str) -> bool:
    return f".{suffix.rpartition('.')[2]}" in IMAGE_FILES


def _grouped(members: list[Member]) -> list[Sample]:
    """The samples of a tar, by webdataset's key."""
    files: dict[str, list[tuple[str, Member]]] = defaultdict(list)
    for member in members:
        key, suffix = split_key(member.name)
        if suffix:
            files[key].append((suffix.lower(), member))
    return [Sample(key, found) for key, found in files.items()]


def _split_by_last_dot(whole: Sample) -> list[Sample]:
    """Names with dots: several samples that webdataset's rule takes for one; else the sample itself."""
    if not any("." in suffix for suffix, _ in whole.files):
        return [whole]
    files: dict[str, list[tuple[str, Member]]] = defaultdict(list)
    for suffix, member in whole.files:
        files[member.name[: member.name.rindex(".")]].append((suffix.rpartition(".")[2], member))
    samples = [Sample(key, found) for key, found in files.items()]
    paired = [
        {suffix for suffix, _ in s.files if _is_image(suffix)}
        and {suffix for suffix, _ in s.files} & {*CAPTION_FILES}
        for s in samples
    ]
    return samples if any(paired) else [whole]


def _captions(sample: Sample, tar: BinaryIO, card: SourceCard) -> tuple[list[str], str | None]:
    """The captions of a sample, and the value of the card's group_column in its JSON."""
    by_kind: dict[str, Member] = {}
    for suffix, member in sample.files:
        by_kind.setdefault(suffix.rpartition(".")[2], member)
    record: dict[str, Any] = {}
    for suffix, member in sample.files:
        if suffix.rpartition(".")[2] == "json":
            record |= _record(_content(member, tar))
    group = record.get(card.group_column) if card.group_column else None
    asked = card.caption_columns or [card.caption_column]
    captions: list[str] = []
    if record and all(column in record for column in asked):
        captions = captions_of(record, asked)
    # img2dataset's .txt repeats the caption of its .json; a list of captions is only in the .json
    if isinstance(record.get("captions"), list) and not card.caption_columns:
        captions = texts(record["captions"])
    for kind in CAPTION_FILES[:-1]:
        if not captions and kind in by_kind:
            text = _content(by_kind[kind], tar).decode("utf-8", "replace").strip()
            captions = [text] if text else []
    if not captions:
        captions = next((found for name in CAPTION_NAMES if (found := texts(record.get(name)))), [])
    return captions, None if group is None else str(group)


def _content(member: Member, tar: BinaryIO) -> bytes:
    tar.seek(member.offset)
    return tar.read(min(member.size, MAX_CAPTION_BYTES))


def _record(data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except ValueError:
        return {}
    if isinstance(record, list):
        return {"captions": record}
    return record if isinstance(record, dict) else {}
