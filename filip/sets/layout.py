"""Define a layout of an image-caption set on disk: its methods, and the rows that it yields.

A layout lists its images with their captions once; their bytes are read later, from the place noted here.
Nothing vanishes: a file, a line or a key that cannot be used is a row with the reason.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from filip.common.errors import UserError
from filip.common.text_files import read_file
from filip.images.rgb import IMAGE_FILES, OTHER_PICTURES, not_read

FOR_TRAINING = ("train",)
ANY = "*"  # the first split found
FOR_EVALUATION = ("test", "validation", ANY)
ALL = "all"
# The words by which `datasets` knows the split of a file or a folder (datasets.data_files.SPLIT_KEYWORDS), and holdout
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "holdout"), "test"),
}
SPLIT_COLUMNS = ("split", "set", "partition", "subset", "is_test")
FEW = 10  # with more files of one kind, a folder has one record for each picture, and no lists
NO_SPLIT = "not_wanted: no split is noted for it (split=all takes it)"


@dataclass(frozen=True)
class Reading:
    """A set and how to read it; the defaults fit what people usually have."""

    place: Path  # a folder, every file of which is accounted for, or one file
    layout: str = "auto"
    image_column: str | None = None  # the column of a table with the names of image files; None: found by its name
    image_root: str | None = None  # folder that a list's names are relative to; None: the list's
    image_name: str = "{}"  # the path below it, with {} for the name in a table, e.g. "{}.jpg"
    caption_column: str = "caption"
    caption_columns: Sequence[str] = ()  # several, which are joined; instead of caption_column
    group_column: str | None = None
    only: Mapping[str, str] = field(default_factory=dict)  # column: value that a row must have
    header: bool = True  # whether a CSV has one
    columns: Sequence[str] = ()  # names, if the file has no header
    encoding: str | None = None  # of tables and texts; None: found out
    split: str | None = None  # the splits to take, joined by "+", or "all"; None: the first of ``prefer``
    prefer: Sequence[str] = FOR_TRAINING
    # what ``recognise`` adds: the splits to take (None: all, and what has none), how much there is of each, and the
    # splits in lists of names, by the pictures' names
    taken: Sequence[str] | None = None
    there: Mapping[str | None, int] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)
    inside_only: bool = False  # links that lead out of the folder are not followed
    without: str | None = None  # absolute path of a folder that does not belong to it, such as the output

    def settings(self) -> dict[str, object]:
        """Return everything but the place as JSON values; with equal settings equal rows are read."""
        others = ("place", "there", "without")
        return {name: value for name, value in vars(self).items() if name not in others} | {"columns_": SPLIT_COLUMNS}

    def name_of(self, path: str | Path) -> str:
        """Return the name of a file in reports: its path below the place."""
        return os.path.relpath(path, self.place) if self.place.is_dir() else Path(path).name

    def root_of(self, part: Path) -> str:
        """Return the absolute path of the folder that names in the list ``part`` are relative to."""
        return os.path.abspath(self.image_root or part.parent)

    def splits_taken(self) -> tuple[str, ...] | None:
        """Return the splits to take; None: all, and what has none. Raises UserError if there are only others."""
        splits = {name: SPLITS.get(name.lower(), name) for name in sorted(filter(None, self.there))}
        by_column = any(column.lower() in SPLIT_COLUMNS for column in self.only)
        if self.split == ALL or by_column or (self.split is None and not splits):
            return None
        if self.split is None:
            for preferred in self.prefer:
                for name, usual in splits.items():
                    if preferred in (ANY, name, usual):
                        # Karpathy's split files: COCO's 113,000 training images are both
                        return (name, *(other for other in ("restval",) if name == "train" and other in splits))
        names = [] if self.split is None else self.split.split("+")
        usually = [SPLITS.get(name, name) for name in names]
        taken = tuple(name for name, usual in splits.items() if name in names or usual in usually)
        unknown = [name for name in names if name not in splits and SPLITS.get(name, name) not in splits.values()]
        if unknown or not taken:
            there = f"it has {', '.join(splits)}" if splits else "it marks none, by names, folders, columns or lists"
            raise UserError(
                f"{self.place} has no split {', '.join(unknown or self.prefer)}; {there}. Say which to take by "
                "`split`: a name, several joined by +, or all (split=all, or `split: all` in a card)"
            )
        return taken

    def about_splits(self) -> str:
        """Return ``splits: train 9, test 3, without 0; taken: train``; "" for a set without splits."""
        if not any(self.there):
            return ""
        counts = ", ".join(f"{name} {self.there[name]:,}" for name in sorted(filter(None, self.there)))
        taken = "all" if self.taken is None else ", ".join(self.taken)
        return f"splits: {counts}, without {self.there.get(None, 0):,}; taken: {taken}"


@dataclass(frozen=True)
class Row:
    """An image, a line of a table that names one, or something that cannot be used. Several rows may name one image."""

    url: str  # its name in reports, and in the column `url` of the shards
    captions: Sequence[str]
    file: str  # the file that holds its bytes
    position: int = 0  # in the file, in bytes or rows as the layout counts
    size: int = -1  # bytes; -1: the whole file, or not known
    group: str | None = None  # value of the group_column
    problem: str | None = None  # why it cannot be taken ("reason: detail")
    split: str | None = None  # the split that it belongs to; None: its part's split, or none

    @property
    def rank(self) -> int:
        """Return 0 for a row with captions, 1 with a problem, 2 with neither; the lowest of an image's rows counts."""
        return 1 if self.problem else 0 if self.captions else 2


RANK = "CASE WHEN problem IS NOT NULL THEN 1 WHEN len(captions) > 0 THEN 0 ELSE 2 END"  # Row.rank in SQL


class NotUnderstoodError(UserError):
    """Error for a place that no layout fits."""


class Layout(ABC):
    """A way in which images and captions are stored on disk."""

    about: str  # a line for messages that describes the set
    in_order = False  # images follow each other in large files: they are read in order, not shuffled
    shard_per_file = False  # each file becomes one shard
    suffixes: Sequence[str] = ()  # of the files that hold the images
    companions = re.compile("$^")  # names of further files of the layout, which hold no image and no caption

    @abstractmethod
    def parts(self, reading: Reading) -> list[Path]:
        """Return the files or folders to be listed, in order; [] if the place is not laid out like this."""

    @abstractmethod
    def find(self, part: Path, reading: Reading) -> Iterator[Row]:
        """Yield the rows of one part, always in the same order."""

    def splits(self, part: Path, reading: Reading) -> Counter[str | None]:
        """Return how much of each split is in one part: images, rows, or the file as a whole, as here."""
        return Counter([split_of(part, reading)])

    def columns(self, part: Path, reading: Reading) -> list[str]:
        """Return the names of the columns; [] for a layout that has none."""
        return []

    def files(self, reading: Reading) -> Iterator[str]:
        """Yield the files that make up the set; when one of them changes, so may its images and captions."""
        yield from map(os.path.abspath, self.parts(reading))

    def rest(self, reading: Reading, parts: Sequence[Path]) -> Iterator[Row]:
        """Yield a row for each file of the folder that no part holds, names or needs."""
        taken = {os.path.abspath(part) for part in parts}
        for path, problem in walk(reading.place, reading.inside_only, without=reading.without):
            if os.path.abspath(path) in taken or (problem is None and self.companions.search(path.name)):
                continue
            if problem is None and path.name.lower().endswith(tuple(self.suffixes)):
                problem = other_split(split_of(path, reading))
            yield unused(path, reading, problem)

    def read(self, file: str, position: int, size: int) -> bytes:
        """Return the bytes of one image. Raises OSError."""
        return read_file(file, max(0, position), size)


def unused(path: Path, reading: Reading, problem: str | None = None) -> Row:
    """Return the row of a file that holds no image and no caption."""
    if problem is None and path.suffix.lower() in OTHER_PICTURES:
        problem = f"format: {not_read([path])}"
    if problem is None:
        problem = f"other_file: {path.suffix or 'a name without suffix'} is neither a picture nor a caption here"
    return Row(reading.name_of(path), [], os.path.abspath(path), -1, problem=problem)


def is_picture(path: Path) -> bool:
    """Return whether a file has the name of a picture that can be read."""
    return path.suffix.lower() in IMAGE_FILES


@lru_cache(maxsize=10_000)
def split_in_name(name: str) -> str | None:
    """Return the split by the words of a name (``cc3m-train-0000.tar``, ``testImages``); None for none, and for two."""
    words = re.split(r"[\W\d_]+", re.sub("([a-z])([A-Z])", r"\1_\2", name).lower())
    splits = {SPLITS[word] for word in words if word in SPLITS}
    return splits.pop() if len(splits) == 1 else None


def split_of(path: Path, reading: Reading) -> str | None:
    """Return the split by the name of a list or of a file with images, or by its folder.

    The name of the place itself counts only if a split is asked for: who names a file wants what is in it.
    """
    by_name = split_in_name(path.name) if reading.place.is_dir() or reading.split else None
    return by_name or split_of_folder(path, reading.place)


def split_of_picture(path: Path, reading: Reading, place: str | Path | None = None) -> str | None:
    """Return the split by a list of names, or by a folder alone: ``train.jpg`` may be a picture of a train."""
    name = path.name.lower()
    listed = reading.named.get(name) or reading.named.get(name.rpartition(".")[0])
    return listed or split_of_folder(path, place or reading.place)


def split_of_folder(path: Path, place: str | Path) -> str | None:
    """Return the split by the nearest folder below the place that has one."""
    if not path.is_relative_to(place):
        return None
    return next(filter(None, map(split_in_name, reversed(path.relative_to(place).parts[:-1]))), None)


OUTSIDE = "outside: a link out of the folder (follow_links in a card takes it)"


def other_split(split: str | None) -> str:
    """Return the problem of a row, or a file, that belongs to a split that is not taken."""
    return NO_SPLIT if split is None else f"not_wanted: it belongs to the split {split}"


def inside(base: str, name: str) -> tuple[str, str | None]:
    """Return the path of ``name`` below ``base``, and a fault if it leads out: no list may name files elsewhere.

    base: absolute, as ``os.path.abspath`` returns it.
    """
    if not name or "\0" in name:
        return "", "no_file: the list names none"
    path = os.path.normpath(os.path.join(base, name))
    if not path.startswith(base.rstrip("/") + "/"):
        return "", f"outside: {name} is not in {base}"
    return path, None


class Entry(NamedTuple):
    """A file in a folder. problem: why it must not be opened."""

    path: Path
    problem: str | None = None


def walk(
    folder: Path, inside_only: bool = False, depth: int | None = None, without: str | None = None
) -> Iterator[Entry]:
    """Yield all files of a folder, hidden ones left out, in a fixed order: the files of a folder before its folders.

    Pipes, sockets, devices, and folders that may not be read or lead in a circle have a problem; so have links out of
    the folder, if ``inside_only``. depth: how many levels of folders are read. without: absolute path of a folder that
    is left out.
    """
    root = os.path.realpath(folder) if inside_only else None
    yield from _walk(folder, root, depth, without, ())


def _walk(
    folder: Path, root: str | None, depth: int | None, without: str | None, above: tuple[str, ...]
) -> Iterator[Entry]:
    real = os.path.realpath(folder)
    if real in above:
        yield Entry(folder, "not_a_file: a link to a folder that it lies in")
        return
    try:
        with os.scandir(folder) as listing:
            entries = sorted((entry for entry in listing if entry.name[0] != "."), key=lambda entry: entry.name)
    except OSError as error:
        yield Entry(folder, f"missing_file: {error.strerror}")
        return
    below = []
    for entry in entries:
        path = folder / entry.name
        if _is(entry, "is_dir"):
            below.append((path, entry.is_symlink()))
        else:
            yield Entry(path, _problem(entry, root))
    for path, linked in below if depth is None or len(above) + 1 < depth else ():
        if without is not None and _below(os.path.abspath(path), without):
            continue
        if linked and root is not None and not _below(os.path.realpath(path), root):
            yield Entry(path, OUTSIDE)
        else:
            yield from _walk(path, root, depth, without, (*above, real))


def _problem(entry: os.DirEntry[str], root: str | None) -> str | None:
    try:
        entry.path.encode()
    except UnicodeEncodeError:
        return "name: not UTF-8; rename it"
    if _is(entry, "is_file"):
        outside = root is not None and entry.is_symlink() and not _below(os.path.realpath(entry.path), root)
        return OUTSIDE if outside else None
    if os.path.exists(entry.path):
        return "not_a_file: a pipe, a socket or a device"
    return None  # a dangling link: reading it reports it


def _is(entry: os.DirEntry[str], question: str) -> bool:
    try:
        return bool(getattr(entry, question)())
    except OSError:  # links in a circle
        return False


def _below(path: str, root: str) -> bool:
    return os.path.commonpath([path, root]) == root


def files_in(reading: Reading, suffixes: Collection[str], depth: int | None = None) -> list[Path]:
    """Return the files of the folder that have one of these suffixes and can be opened."""
    entries = walk(reading.place, reading.inside_only, depth, reading.without)
    endings = tuple(suffixes)
    return [path for path, problem in entries if problem is None and path.name.lower().endswith(endings)]


def pictures_below(reading: Reading) -> list[Path]:
    return [path for path in files_in(reading, [""]) if is_picture(path)]


def last_part(name: str) -> str:
    return re.split(r"[\\/]", name)[-1].lower()
