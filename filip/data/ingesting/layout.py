"""How a data set that has its images lies on disk: what every layout answers, and what it finds.

A layout lists its images with their captions once; their bytes are read later, by the place that is noted here.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filip.data.cards import SourceCard
from filip.errors import UserError

# Where the card's own column is not to be found, the first of these that is.
CAPTION_NAMES = (
    "caption",
    "captions",
    "text",
    "texts",
    "sentences",
    "alt_text",
    "alt",
    "title",
    "description",
)
IMAGE_NAMES = ("path", "image", "image_path", "img_path", "file_name", "filename", "filepath", "file", "img")


@dataclass(frozen=True)
class Found:
    """One image (or one row of a table that names an image) and its captions."""

    url: str  # its name in reports, and in the column `url` of the shards
    captions: Sequence[str]
    file: str  # that holds its bytes
    position: int = 0  # in the file: bytes or rows, as the layout has it
    size: int = -1  # bytes; -1: the whole file, or not known
    group: str | None = None  # the card's group_column
    key: str | None = (
        None  # under which a loader finds it in its tar; None: it is not in a tar, or not findable
    )
    problem: str | None = None  # why it cannot be taken ("reason: detail")


class Layout(ABC):
    """One way in which images and captions lie on disk."""

    about: str  # one line for messages: what a person has
    in_order = False  # images lie behind each other in large files: read in their order, not shuffled
    shard_per_file = False  # each file becomes one shard

    @abstractmethod
    def parts(self, images: Path, card: SourceCard) -> list[Path]:
        """The files or folders to be listed, in order; [] if ``images`` is not laid out like this."""

    @abstractmethod
    def find(self, part: Path, card: SourceCard, scratch: Path) -> Iterator[Found]:
        """The images of one part, always in the same order. ``scratch``: a folder for temporary files."""

    def read(self, file: str, position: int, size: int) -> bytes:
        """The bytes of one image. Raises OSError."""
        with open(file, "rb") as opened:
            if size < 0:
                return opened.read()
            opened.seek(position)
            return opened.read(size)


def texts(value: Any) -> list[str]:
    """The captions in a value of a record: a text, a list of them, or a list of records that have one."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, bytes):
        return [value.decode("utf-8", "replace")]
    if isinstance(value, Mapping):
        found = next((value[name] for name in ("raw", *CAPTION_NAMES) if name in value), None)
        return texts(found)
    if isinstance(value, Sequence):
        return [text for item in value for text in texts(item)]
    return [str(value)]


def caption_columns(names: Sequence[str], card: SourceCard, where: object) -> list[str]:
    """The columns of a record that hold its caption. Raises UserError if there is none."""
    asked = card.caption_columns or [card.caption_column]
    if all(column in names for column in asked):
        return list(asked)
    if not card.caption_columns:
        known = next((name for name in CAPTION_NAMES if name in names), None)
        if known:
            return [known]
    raise UserError(
        f"{where} has no column {', '.join(map(repr, asked))}; its columns are {', '.join(names)}. Say in the card "
        "which holds the captions: caption_column: NAME"
    )


def captions_of(record: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """The captions of a record; those of several columns are joined, as in a list of URLs."""
    if len(columns) == 1:
        return texts(record[columns[0]])
    joined = ". ".join(text for column in columns for text in texts(record[column]) if text.strip())
    return [joined] if joined else []


def group_of(record: Mapping[str, Any], card: SourceCard, where: object) -> str | None:
    """The value of the card's group_column as text. Raises UserError where there is no such column."""
    if card.group_column is None:
        return None
    if card.group_column not in record:
        raise UserError(
            f"{where} has no column '{card.group_column}' (group_column); its columns are {', '.join(record)}"
        )
    value = record[card.group_column]
    return None if value is None else str(value)


def inside(root: Path, name: str) -> tuple[str, str | None]:
    """The path of ``name`` below ``root``, and what is wrong with it: a list must not name files elsewhere."""
    if not name or "\0" in name:
        return "", "no_file: the list names none"
    base = os.path.abspath(root)
    path = os.path.normpath(os.path.join(base, name))
    if os.path.commonpath([base, path]) != base:
        return "", f"outside: {name} is not in {base}"
    return path, None


def files_in(folder: Path, suffixes: Sequence[str], deep: bool = True) -> list[Path]:
    """All files of a folder with one of these suffixes, hidden ones left out, in a fixed order."""
    found = []
    for where, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if deep else []
        found += [
            Path(where, name)
            for name in sorted(names)
            if name.lower().endswith(tuple(suffixes)) and name[0] != "."
        ]
    return found
