"""Find where each file of a tar is, from its headers alone."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import NamedTuple

_BLOCK = 512
_SHORTEST = 10_240  # bytes of an empty tar, as `tar` and tarfile write it
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")  # suffixes of the images in a shard, lower case


class Member(NamedTuple):
    """A regular file inside a tar."""

    name: str
    offset: int  # its first byte, from the start of the tar
    size: int  # bytes


def split_key(name: str) -> tuple[str, str]:
    """Return key and suffix by webdataset's rule: the key ends at the first dot of the last path component."""
    folder, slash, base = name.rpartition("/")
    key, _, suffix = base.partition(".")
    return folder + slash + key, suffix


def scan_tar(tar: str | Path | int) -> tuple[list[Member], str | None]:
    """Return all complete regular files of a tar, in order, and its fault. tar: a path, or a descriptor to close.

    The defect is None, ``empty``, ``unreadable``, ``truncated`` (the last file is cut off and left out, or
    the end mark is missing) or ``corrupt`` (no header where one should be, or bytes after the end mark). It is some
    ten times as fast as ``tarfile``.
    """
    members: list[Member] = []
    try:
        with open(tar, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return members, "empty"
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return members, _scan(data, members)
    except OSError:
        return members, "unreadable"


def _scan(data: mmap.mmap, members: list[Member]) -> str | None:
    position, end = 0, len(data)
    long_name, long_size = None, None
    while position + _BLOCK <= end:
        header = data[position : position + _BLOCK]
        if not header[0]:
            # zeros to the last byte end a tar; elsewhere they are a part of a disk that was lost
            lost = data[position:].strip(b"\0") or (not position and end > _SHORTEST)
            return "corrupt" if lost else None
        try:
            if _number(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
                return "corrupt"
            size = long_size if long_size is not None else _number(header[124:136])
        except ValueError:
            return "corrupt"
        start, kind = position + _BLOCK, header[156]
        if kind in b"123456":  # a link, a device or a folder: no bytes follow, whatever its size says
            size = 0
        if start + size > end:
            return "truncated"
        name = long_name or _name(header)
        if kind in b"07" or (kind == 0 and not name.endswith("/")):
            members.append(Member(name, start, size))
        elif kind == ord("L"):  # GNU: the next member's name
            long_name = data[start : start + size].rstrip(b"\0").decode("utf-8", "replace")
        elif kind == ord("x"):  # pax: the next member's attributes
            attributes = _pax(data[start : start + size])
            long_name = attributes.get("path", long_name)
            long_size = int(attributes["size"]) if attributes.get("size", "").isdecimal() else None
        if kind not in b"LKxg":  # a member, also a folder or a link, to which the name before it belonged
            long_name, long_size = None, None
        position = start + (size + _BLOCK - 1) // _BLOCK * _BLOCK
    return "truncated"


def _name(header: bytes) -> str:
    name = header[: header.index(b"\0")] if b"\0" in header[:100] else header[:100]
    prefix = header[345:500].split(b"\0", 1)[0] if header.startswith(b"ustar\0", 257) else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _number(digits: bytes) -> int:
    if digits[0] & 0x80:  # GNU's base 256 for sizes of 8 GiB and more
        return int.from_bytes(digits[1:], "big")
    return int(digits.strip(b" \0") or b"0", 8)


def _pax(records: bytes) -> dict[str, str]:
    """Return the attributes in a pax header, as far as it can be read."""
    attributes = {}
    while records:
        length, _, _ = records.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(records):
            break
        name, _, value = records[len(length) + 1 : int(length) - 1].decode("utf-8", "replace").partition("=")
        attributes[name] = value
        records = records[int(length) :]
    return attributes
