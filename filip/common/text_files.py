"""Read text files of other people: in a given encoding, in UTF-8 or UTF-16, or in Windows' western code page.

The last is a guess, which is made only where the text then looks like one of a western language.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

MAX_LINE = 10_000_000  # characters; no table has longer lines
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
DAMAGED = "\ufffd"
UNKNOWN = "its bytes are neither UTF-8 nor Latin-1; `encoding` in a card says what they are"
# Other code pages become Cyrillic and Greek words, Polish and Turkish letters. Czech and Hungarian look western.
_NOT_WESTERN = re.compile(r"[^\W\d_a-zA-Z]{3}|[ÝýÞþÐðŸ]|[^\W\d_][¹³¥£¿¯¾¼][^\W\d_]|(?<!\w)[³¾¼¥£¯¹][^\W\d_]")


class NotAFileError(OSError):
    """Error for a pipe, a socket or a device instead of a file: opening it may block for ever."""


class TextLine(NamedTuple):
    """A line of a file, without its end. text: None if it cannot be read, with the reason in ``problem``."""

    number: int
    text: str | None
    problem: str = ""


def read_file(path: str | Path, offset: int = 0, size: int = -1) -> bytes:
    """Return bytes of a regular file. Raises OSError; NotAFileError for a pipe, a socket or a device."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        if stat.S_ISDIR(os.stat(path).st_mode):
            raise IsADirectoryError(21, "Is a directory", str(path))
        raise NotAFileError(22, "a pipe, a socket or a device", str(path))
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def decoded(data: bytes, encoding: str | None = None) -> str | None:
    """Return the text in some bytes; None if they are not text, or are damaged. encoding: None to find it out."""
    if encoding := encoding or _wide(data):
        text = data.decode(encoding, "replace").removeprefix("\ufeff")
        return None if DAMAGED in text else text
    return _narrow(data)


def _narrow(data: bytes) -> str | None:
    """Decode bytes as UTF-8, or else as Windows' western code page, if they then look western."""
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError:
        pass
    valid = data.decode("utf-8", "ignore")
    if not valid.isascii():  # UTF-8 with missing bytes
        return None
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        return None
    odd = any(character < " " and not character.isspace() for character in text)
    return None if odd or _NOT_WESTERN.search(text) else text


def _wide(data: bytes) -> str | None:
    """Return the encoding of text in UTF-16 or UTF-32: by its mark, or by zeros in every second byte."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return encoding
    start = data[:4096]
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros, letters = start[first::2], start[1 - first :: 2]
        if len(start) > 3 and zeros.count(0) > 0.7 * len(zeros) and 0 not in letters:
            return encoding
    return None


def lines(stream: BinaryIO, encoding: str | None = None) -> Iterator[TextLine]:
    """Yield the lines of a text file of any of these encodings; each is decoded alone, so a bad one costs only itself.

    Memory is bounded by the longest line. Raises what reading raises (EOFError and OSError for a compressed file that
    is cut off).
    """
    buffered = io.BufferedReader(stream, 1 << 16)  # type: ignore[type-var]
    wide = encoding or _wide(buffered.peek(4096)[:4096])
    text = io.TextIOWrapper(buffered, wide or "latin-1", errors="replace", newline=None)
    number = 0
    while piece := text.readline(MAX_LINE):
        number += 1
        if len(piece) == MAX_LINE and not piece.endswith("\n"):
            while (more := text.readline(MAX_LINE)) and not more.endswith("\n"):
                pass
            yield TextLine(number, None, f"longer than {MAX_LINE:,} characters")
            continue
        line = piece.rstrip("\n")
        decoded: str | None
        if wide:
            decoded = None if DAMAGED in line else line.removeprefix("\ufeff")
        else:
            decoded = line if line.isascii() else _narrow(line.encode("latin-1"))  # as it was read
        yield TextLine(number, decoded, "" if decoded is not None else UNKNOWN)
