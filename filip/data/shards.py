"""What lies where in a source's shards: an index of the tars, joined by key with the caption side-cars.

Tars are scanned header by header and never unpacked; a sample is then one ``pread``. Whatever a shard lacks is
counted here, before training starts.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filip.errors import UserError
from filip.tokenizer import tokenize_numpy

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
_BLOCK = 512


class Member(NamedTuple):
    """A regular file inside a tar."""

    name: str
    offset: int  # of its first byte, from the start of the tar
    size: int  # bytes


def scan_tar(path: str | Path) -> tuple[list[Member], str | None]:
    """All complete regular files of a tar, in order, and what is wrong with it (None, or a short reason).

    A file cut off by a truncated tar is left out. Reads the headers only, ten times faster than ``tarfile``.
    """
    members: list[Member] = []
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return members, "empty"
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return members, _scan(data, members)
    except OSError:
        return members, "unreadable"


def _scan(data: mmap.mmap, members: list[Member]) -> str | None:
    position, end, long_name = 0, len(data), None
    while position + _BLOCK <= end:
        header = data[position : position + _BLOCK]
        if not header[0]:
            return None  # the zero block that ends a tar
        if header[257:262] != b"ustar" and not _checksum_fits(header):
            return "corrupt"
        try:
            size = _number(header[124:136])
        except ValueError:
            return "corrupt"
        start = position + _BLOCK
        if start + size > end:
            return "truncated"
        kind = header[156:157]
        if kind in (b"0", b"\0"):
            members.append(Member(long_name or _name(header), start, size))
            long_name = None
        elif kind == b"L":  # GNU: the next member's name
            long_name = data[start : start + size].rstrip(b"\0").decode("utf-8", "replace")
        elif kind == b"x":  # pax: the next member's attributes
            long_name = _pax_path(data[start : start + size]) or long_name
        position = start + (size + _BLOCK - 1) // _BLOCK * _BLOCK
    return "truncated"  # no end block: the writer was stopped between two members


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "replace")


def _number(digits: bytes) -> int:
    if digits[0] & 0x80:  # GNU's base 256 for sizes of 8 GiB and more
        return int.from_bytes(digits[1:], "big")
    return int(digits.strip(b" \0") or b"0", 8)


def _checksum_fits(header: bytes) -> bool:
    try:
        return _number(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * 32
    except ValueError:
        return False


def _pax_path(records: bytes) -> str | None:
    while records:
        length, _, _ = records.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(records):
            return None
        name, _, value = records[len(length) + 1 : int(length) - 1].partition(b"=")
        if name == b"path":
            return value.decode("utf-8", "replace")
        records = records[int(length) :]
    return None


@dataclass
class Source:
    """Shards of one data set: a folder of tars, a folder of side-cars, and how often its pairs are seen."""

    shards: str  # folder with NNNNN.tar
    captions: str | None = (
        None  # folder with NNNNN.parquet (key, captions, origins, group); None: .txt in the tar
    )
    weight: float = 1.0  # passes over this source per epoch


@dataclass
class SourceIndex:
    """Where each usable sample of a source is. Arrays have one entry per sample, in tar order."""

    source: Source
    tars: list[Path]
    shard: np.ndarray  # int32, index into tars
    offset: np.ndarray  # int64, bytes
    size: np.ndarray  # int64, bytes
    row: np.ndarray  # int64: row of the side-car, or the member number of the .txt
    counts: np.ndarray  # int64 [shards], samples per shard
    problems: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.shard)


def index_source(source: Source) -> SourceIndex:
    """Scan a source. UserError if there is nothing to train on; lesser defects go into ``problems``."""
    folder = Path(source.shards)
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise UserError(
            f"no shards: {folder} {'has no *.tar' if folder.is_dir() else 'is not a folder'}; "
            "give the folder that the download stage wrote (data.sources=[{shards: …, captions: …}])"
        )
    if source.captions is not None and not any(Path(source.captions).glob("*.parquet")):
        raise UserError(
            f"no caption side-cars: {source.captions} has no *.parquet; give the folder that the translation "
            "stage wrote, or captions: null to read the .txt files in the tars"
        )
    problems: Counter[str] = Counter()
    parts = [_index_shard(source, tar, problems) for tar in tars]
    counts = np.array([len(part[0]) for part in parts], np.int64)
    if not counts.sum():
        raise UserError(
            f"no usable pair in the {len(tars)} shards of {folder}: {dict(problems)}; do the side-cars in "
            f"{source.captions} belong to these shards?"
        )
    offset, size, row = (np.concatenate([part[i] for part in parts]) for i in range(3))
    shard = np.repeat(np.arange(len(tars), dtype=np.int32), counts)
    return SourceIndex(source, tars, shard, offset, size, row, counts, problems)


def _index_shard(
    source: Source, tar: Path, problems: Counter[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    members, defect = scan_tar(tar)
    if defect is not None:
        problems[f"shards_{defect}"] += 1
    images: dict[str, Member] = {}
    texts: dict[str, int] = {}
    for number, member in enumerate(members):
        key, _, suffix = member.name.partition(".")
        if suffix.lower() in IMAGE_SUFFIXES:
            images[key] = member
        elif suffix == "txt":
            texts[key] = number
    keys = list(images)
    if source.captions is None:
        rows = np.array([texts.get(key, -1) for key in keys], np.int64)
        problems["missing_caption"] += int((rows < 0).sum())
    else:
        rows = _sidecar_rows(sidecar_path(source, tar), keys, problems)
    used = rows >= 0
    offset = np.array([m.offset for m in images.values()], np.int64)
    size = np.array([m.size for m in images.values()], np.int64)
    return offset[used], size[used], rows[used]


def sidecar_path(source: Source, tar: Path) -> Path:
    """The side-car of a shard: the same number, in the captions folder."""
    return Path(source.captions or "") / f"{tar.stem}.parquet"


def _sidecar_rows(path: Path, keys: list[str], problems: Counter[str]) -> np.ndarray:
    """Row of each key in the side-car, -1 where it has none."""
    if not path.exists():
        problems["shards_without_sidecar"] += 1
        problems["missing_sidecar"] += len(keys)
        return np.full(len(keys), -1, np.int64)
    try:
        known = pq.read_table(path, columns=["key"]).column("key").combine_chunks()
    except (OSError, pa.ArrowException, KeyError) as error:
        raise UserError(f"cannot read the key column of the side-car {path}: {error}") from error
    rows = (
        pc.index_in(pa.array(keys, known.type), value_set=known).fill_null(-1).to_numpy(zero_copy_only=False)
    )
    found = int((rows >= 0).sum())
    problems["not_in_sidecar"] += len(keys) - found
    problems["missing_image"] += len(known) - found
    return rows.astype(np.int64)


class ShardCaptions:
    """All captions of a shard, tokenised once: candidate captions, group and key per side-car row."""

    def __init__(self, index: SourceIndex, shard: int, context_length: int) -> None:
        tar = index.tars[shard]
        if index.source.captions is None:
            self.keys, texts, self.group, first = _captions_from_tar(tar)
        else:
            self.keys, texts, self.group, first = _captions_from_sidecar(sidecar_path(index.source, tar))
        self.first = first  # int64 [rows + 1]: row r has the candidates first[r] … first[r + 1] - 1
        ids, self.lengths = tokenize_numpy(texts, context_length)
        self.ids = ids[np.arange(ids.shape[1]) < self.lengths[:, None]]  # packed uint16
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])

    def candidates(self, row: int) -> int:
        return int(self.first[row + 1] - self.first[row])

    def tokens(self, row: int, candidate: int) -> np.ndarray:
        """uint16 ids of one candidate caption, [BOS] … [EOS]."""
        number = int(self.first[row]) + candidate
        return self.ids[self.starts[number] : self.starts[number + 1]]


def _captions_from_sidecar(path: Path) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    table = pq.read_table(path, columns=["key", "captions", "group"]).combine_chunks()
    captions = table.column("captions").combine_chunks()
    if isinstance(captions, pa.ChunkedArray):  # an empty table has no chunk to combine
        captions = pa.array([], captions.type)
    lengths = pc.list_value_length(captions).fill_null(0).to_numpy(zero_copy_only=False)
    first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    texts = captions.flatten().fill_null("").to_pylist()
    return table.column("key").to_pylist(), texts, table.column("group").to_numpy().astype(np.int64), first


def _captions_from_tar(tar: Path) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    members, _ = scan_tar(tar)
    keys, texts = [], []
    with open(tar, "rb") as file:
        for member in members:
            key, _, suffix = member.name.partition(".")
            keys.append(key)
            text = ""
            if suffix == "txt":
                file.seek(member.offset)
                text = file.read(member.size).decode("utf-8", "replace")
            texts.append(text)
    hashes = (hashlib.blake2b(" ".join(t.lower().split()).encode(), digest_size=8).digest() for t in texts)
    group = np.array([int.from_bytes(h, "big") >> 1 for h in hashes], np.int64)
    return keys, texts, group, np.arange(len(texts) + 1, dtype=np.int64)
