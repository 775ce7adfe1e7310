"""Read images and texts that share a name: the members of webdataset tars, and the files of folders.

In a tar (img2dataset's, open_clip's, CLIP_benchmark's or others') the key of a member is its name up to a dot: to the
first, as in webdataset (``0001.image.jpg`` and ``0001.caption.txt``), or to the last where names have dots in them
(``photo.v2.jpg`` and ``photo.v2.txt``). In a folder captions are in ``a.txt`` or ``a.jpg.caption``; where there is no
such text, they are the descriptions of Google Takeout's records (``a.jpg.json``).
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
from itertools import groupby, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from filip.common.tar_index import Member, scan_tar, split_key
from filip.common.text_files import NotAFileError, read_file
from filip.images.rgb import IMAGE_FILES, OTHER_PICTURES, not_read
from filip.sets.columns import CAPTION_SUFFIXES, MAX_CAPTION_BYTES, TEXT_SUFFIXES, About, captions_in, split_in
from filip.sets.layout import (
    Entry,
    Layout,
    Reading,
    Row,
    files_in,
    is_picture,
    pictures_below,
    split_of,
    split_of_picture,
    unused,
    walk,
)

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
                    yield from _rows_of(sample, tar, file, name, reading)


def _rows_of(sample: TarSample, tar: BinaryIO, file: str, name: str, reading: Reading) -> Iterator[Row]:
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


# ---- folders ------------------------------------------------------------------------------------------

LOOKED_AT = 50  # pictures in which a description is looked for before the folder has none
TAKEOUT = re.compile(r"\.supp[a-z-]*\.json$")  # a.jpg.supplemental-metadata.json, which may be cut short


class TextBeside(Layout):
    """Layout in which every line of an image's text is a caption."""

    about = "a folder of images, each with a .txt of the same name, or with Google Takeout's records"

    def parts(self, reading: Reading) -> list[Path]:
        if not reading.place.is_dir():
            return []
        for entries in _folders(reading):
            pictures, texts = _sorted_out(entries)
            suffixes = [_belonging(path, texts) for path in pictures if is_picture(path)]
            if any(suffix.endswith(CAPTION_SUFFIXES) for files in suffixes for suffix in files):
                return [reading.place]  # records without texts may describe anything
        return [reading.place] if _is_described(reading) else []

    def splits(self, part: Path, reading: Reading) -> Counter[str | None]:
        """Count the pictures by their folders, or by their records where one of the first has a split."""
        by_folder = Counter(split_of_picture(path, reading) for path in pictures_below(reading))
        first = {row.split for row in islice(self.find(part, reading), LOOKED_AT) if row.captions}
        if first <= by_folder.keys():
            return by_folder
        return Counter(row.split for row in self.find(part, reading) if row.captions)

    def find(self, part: Path, reading: Reading) -> Iterator[Row]:
        for entries in _folders(reading):
            pictures, texts = _sorted_out(entries)
            used: set[str] = set()
            for path in pictures:
                texts_of = _belonging(path, texts)
                used.update(text.name for text in texts_of.values())
                yield _picture(path, texts_of, reading)
            for path, problem in entries:
                if path in pictures or path.name in used:
                    continue
                if problem is None and path.name in texts:
                    problem = "no_image: a text without a picture of the same name"
                yield unused(path, reading, problem)

    def files(self, reading: Reading) -> Iterator[str]:
        entries = walk(reading.place, reading.inside_only, without=reading.without)
        yield from (os.path.abspath(entry.path) for entry in entries)

    def rest(self, reading: Reading, parts: object) -> Iterator[Row]:
        yield from ()  # find has yielded them all


def _folders(reading: Reading) -> Iterator[list[Entry]]:
    """Yield the files of each folder."""
    files = walk(reading.place, reading.inside_only, without=reading.without)
    return (list(entries) for _, entries in groupby(files, lambda entry: entry.path.parent))


def _sorted_out(entries: list[Entry]) -> tuple[dict[Path, None], dict[str, Path]]:
    """Return the pictures (also in formats that are not read), and the texts by their names."""
    pictures: dict[Path, None] = {}
    texts: dict[str, Path] = {}
    for path, problem in entries:
        if problem is None and (is_picture(path) or path.suffix.lower() in OTHER_PICTURES):
            pictures[path] = None
        elif problem is None and path.suffix.lower()[1:] in TEXT_SUFFIXES:
            texts[TAKEOUT.sub(".json", path.name)] = path
    return pictures, texts


def _belonging(picture: Path, texts: dict[str, Path]) -> dict[str, Path]:
    """Return the texts of a picture by their suffixes: ``a.txt`` and ``a.jpg.txt``."""
    names = [f"{start}.{suffix}" for suffix in TEXT_SUFFIXES for start in (picture.stem, picture.name)]
    return {name.removeprefix(f"{picture.stem}."): texts[name] for name in names if name in texts}


def _is_described(reading: Reading) -> bool:
    """Return whether some of the first pictures have a description by Google Takeout."""
    folders = map(_sorted_out, _folders(reading))
    readable = ((path, texts) for pictures, texts in folders for path in pictures if is_picture(path))
    for path, texts in islice(readable, LOOKED_AT):
        records = {suffix: text for suffix, text in _belonging(path, texts).items() if suffix.endswith(".json")}
        if _picture(path, records, reading).captions:
            return True
    return False


def _picture(path: Path, texts: dict[str, Path], reading: Reading) -> Row:
    if not is_picture(path):
        return unused(path, reading)
    try:
        files = {suffix: partial(read_file, text, 0, MAX_CAPTION_BYTES) for suffix, text in texts.items()}
        captions, group, problem, split = captions_in(files, reading)
    except NotAFileError as error:
        captions, group, problem, split = About([], problem=f"not_a_file: its text is {error.strerror}")
    except OSError as error:
        captions, group, problem, split = About([], problem=f"missing_file: its text: {error.strerror}")
    split = split or split_of_picture(path, reading)
    return Row(reading.name_of(path), captions, os.path.abspath(path), group=group, problem=problem, split=split)
