"""Read webdataset tars (img2dataset's, open_clip's, CLIP_benchmark's or others'), where image and caption share a key.

The key of a member is its name up to a dot: to the first, as in webdataset (``0001.image.jpg`` and
``0001.caption.txt``), or to the last where names have dots in them (``photo.v2.jpg`` and ``photo.v2.txt``).
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from filip.images.rgb import IMAGE_FILES, OTHER_PICTURES, not_read
from filip.sets.columns import MAX_CAPTION_BYTES, TEXT_SUFFIXES, captions_in, split_in
from filip.sets.layout import Layout, Reading, Row, files_in, split_of
from filip.sets.tar_index import Member, scan_tar, split_key

FIRST = 6  # members of a tar among which a record with a split is looked for


class TarSample(NamedTuple):
    """Files of one key."""

    key: str
    files: list[tuple[str, Member]]  # suffix (lower case) and member


class Tars(Layout):
    """Layout of tars, which are never unpacked; ``position`` and ``size`` locate the image inside the tar."""

    about = "webdataset tars: KEY.jpg with KEY.txt or KEY.json"
    in_order = True
    shard_per_file = True
    suffixes = (".tar",)
    # what img2dataset, this project, webdataset and CLIP_benchmark write next to their tars
    companions = re.compile(
        r"\.(index|idx)$|^\d+(\.parquet|_stats\.json)$|^(nshards|classnames|dataset_type|\w*templates)\.txt$|^sizes\.json$"
    )

    def parts(self, reading: Reading) -> list[Path]:
        if reading.place.is_file():
            return [reading.place] if reading.place.suffix == ".tar" else []
        return files_in(replace(reading, inside_only=False), self.suffixes)  # a folder of links to tars elsewhere

    def splits(self, part: Path, reading: Reading) -> Counter[str | None]:
        """Count the tar once for each of its splits; all JSON is read where the first has one."""
        with suppress(tarfile.TarError, OSError, ValueError), tarfile.open(part, "r:") as tar:
            for member in islice(tar, FIRST):
                if member.name.endswith(".json") and (content := tar.extractfile(member)):
                    record = json.load(content)
                    if isinstance(record, dict) and split_in(record):
                        return Counter({row.split for row in self.find(part, reading) if row.captions})
        return super().splits(part, reading)

    def find(self, part: Path, reading: Reading) -> Iterator[Row]:
        members, defect = scan_tar(part)
        file, name = os.path.abspath(part), reading.name_of(part)
        if defect:
            yield Row(name, [], file, -1, problem=f"tar_{defect}: the rest is lost")
        with open(part, "rb") as tar:
            for whole in samples_of(members):
                if whole.key == "":
                    for _, member in whole.files:
                        problem = "other_file: its name has no suffix"
                        yield Row(f"{name}/{member.name}", [], file, member.offset, member.size, problem=problem)
                    continue
                for sample in _split_by_last_dot(whole):
                    yield from _rows(sample, tar, file, name, reading)


def _rows(sample: TarSample, tar: BinaryIO, file: str, name: str, reading: Reading) -> Iterator[Row]:
    images = [(suffix, member) for suffix, member in sample.files if is_image(suffix)]
    if not images:
        members = [member for _, member in sample.files]
        pictures = [member for member in members if Path(member.name).suffix.lower() in OTHER_PICTURES]
        member = (pictures or members)[0]
        why = f"format: {not_read([Path(member.name)])}" if pictures else "no_image: a key without a picture"
        yield Row(f"{name}/{member.name}", [], file, member.offset, member.size, problem=why)
        return
    _, member = images[0]
    contents: dict[str, Callable[[], bytes]] = {}
    for kind, text in sample.files:
        if kind.rpartition(".")[2] in TEXT_SUFFIXES:
            contents.setdefault(kind, partial(_content, text, tar))
    captions, group, problem, split = captions_in(contents, reading)
    url, split = f"{name}/{member.name}", split or split_of(Path(file), reading)
    yield Row(url, captions, file, member.offset, member.size, group, problem, split)
    for _, further in images[1:]:
        problem = f"second_image: the key {sample.key} has {member.name}"
        yield Row(f"{name}/{further.name}", [], file, further.offset, further.size, problem=problem)


def is_image(suffix: str) -> bool:
    """Return whether a member with this suffix is a picture that can be read."""
    return f".{suffix.rpartition('.')[2]}" in IMAGE_FILES


def samples_of(members: list[Member]) -> list[TarSample]:
    """Return the samples of a tar, by webdataset's key; under the key "" the files without a suffix."""
    files: dict[str, list[tuple[str, Member]]] = defaultdict(list)
    for member in members:
        key, suffix = split_key(member.name)
        files[key if suffix else ""].append((suffix.lower(), member))
    return [TarSample(key, found) for key, found in files.items()]


def _split_by_last_dot(whole: TarSample) -> list[TarSample]:
    """Return several samples if webdataset's rule mistook names with dots for one; else the sample itself."""
    if not any("." in suffix for suffix, _ in whole.files):
        return [whole]
    files: dict[str, list[tuple[str, Member]]] = defaultdict(list)
    for suffix, member in whole.files:
        files[member.name[: member.name.rindex(".")]].append((suffix.rpartition(".")[2], member))
    samples = [TarSample(key, members) for key, members in files.items()]
    paired = [
        {suffix for suffix, _ in s.files if is_image(suffix)} and {suffix for suffix, _ in s.files} & {*TEXT_SUFFIXES}
        for s in samples
    ]
    return samples if any(paired) else [whole]


def _content(member: Member, tar: BinaryIO) -> bytes:
    tar.seek(member.offset)
    return tar.read(min(member.size, MAX_CAPTION_BYTES))
