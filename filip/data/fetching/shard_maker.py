"""Make a shard of images, wherever their bytes come from: NNNNN.tar, .index and .parquet, and _stats.json at the end.

It appears under its name only when it is complete. The same images give the same bytes, in whichever order they come,
and an image that kills the process that decodes it is given up alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filip.common.files import publish, replacing, sha256_of, write_json
from filip.common.tar_index import Member
from filip.data.cards import SourceCard
from filip.data.fetching.image_rules import CheckedResizer
from filip.data.lists.parquet_rows import row_group, whole_file
from filip.data.shard_index import index_of, shard_index, write_index
from filip.data.shard_set import TAR_SHA256

WORK = "_work"  # folder inside the shards' folder: plan, lists of retries, half-finished shards
SUFFIXES = (".tar", ".index", ".parquet", "_stats.json")  # with the last, a shard is complete
LIST_SHA256 = "source_sha256"  # column in which a list has the hash of an image's bytes
MOST_OUTCOMES = 200  # different ones in the statistics of a shard
SECONDS_ALONE = 600.0  # time in which a suspected image has to be decoded
CRASHED = "crashed: the process that decodes it dies (out of memory, or a fault of the decoder)"
OUTCOME = pa.schema(
    [
        ("status", pa.string()),
        ("error_message", pa.string()),
        *((name, pa.int32()) for name in ("width", "height", "original_width", "original_height")),
        ("sha256", pa.string()),
    ]
)
# the number of its row in the shard; its bytes, or already its outcome, or None; and why it has none
Image = tuple[int, "bytes | Stored | None", str]


@dataclass
class Stored:
    """The outcome of a row: columns of the shard's Parquet file, and the encoded image."""

    image: bytes | None = None
    status: str = ""
    error_message: str | None = None
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    sha256: str | None = None  # hash of the file as it was found


def shard_name(shard: int) -> str:
    return f"{shard:05d}"


def shard_schema(listed: pa.Schema) -> pa.Schema:
    """Return the columns of a shard's Parquet file: the list's, and the outcome."""
    return pa.schema([*listed, ("key", pa.string()), *OUTCOME])


def progress_file(folder: Path, shard: int) -> Path:
    return folder / WORK / f"{shard_name(shard)}.progress"


def is_complete(folder: Path, shard: int) -> bool:
    """Return whether the files of a shard are there."""
    return all((folder / f"{shard_name(shard)}{suffix}").exists() for suffix in (".tar", ".parquet", "_stats.json"))


@dataclass(kw_only=True)
class ShardMaker:
    """Maker of whole shards in a folder. It can be pickled to any worker."""

    card: SourceCard
    final_folder: Path
    digits: int = 6  # of the number of an image in its key

    def __post_init__(self) -> None:
        self.resizer = CheckedResizer(self.card.download, self.card.image_rules)

    @contextmanager
    def staged(self, shard: int) -> Iterator[tuple[Path, InProgress]]:
        """Yield a folder for the files of a shard, and the note of the image in progress; then give them their names.

        Leaves nothing behind if the block raises.
        """
        name = shard_name(shard)
        staging = self.final_folder / WORK / f"{name}.{os.uname().nodename}.{os.getpid()}"
        shutil.rmtree(staging, ignore_errors=True)  # left by a killed worker with the same shard
        staging.mkdir(parents=True)
        progress = InProgress(progress_file(self.final_folder, shard))
        try:
            yield staging, progress
            # remove the mark of completeness first: while a shard is replaced, none must look complete
            (self.final_folder / f"{name}_stats.json").unlink(missing_ok=True)
            for suffix in SUFFIXES:
                if suffix == SUFFIXES[-1]:
                    progress.forget()  # before the shard is complete: a later run does not look at it again
                if (staging / f"{name}{suffix}").exists():
                    publish(staging / f"{name}{suffix}", self.final_folder / f"{name}{suffix}")
        finally:
            progress.close()
            shutil.rmtree(staging, ignore_errors=True)

    def fill(
        self,
        shard: int,
        staging: Path,
        progress: InProgress,
        rows: list[dict[str, Any]],
        schema: pa.Schema,
        images: Iterable[Image],
    ) -> dict[str, Any]:
        """Write tar, index and Parquet of a shard; return its statistics, as img2dataset has them.

        rows: rows of the list. images: one for each row, in any order. schema: :func:`shard_schema` the list.
        """
        writer = OrderedWriter(staging / shard_name(shard), schema, self.card.download.encode_format)
        counts: Counter[str] = Counter()
        outcomes: Counter[str] = Counter()
        for number, data, problem in images:
            if isinstance(data, bytes):
                outcome = self._stored(number, rows[number], data, progress)
            else:
                outcome = data or Stored(status="failed_to_download", error_message=problem)
                outcome = self.mismatch(rows[number], outcome.sha256) or outcome
            key, row = f"{shard_name(shard)}{number:0{self.digits}d}", rows[number]
            about = {**row, "key": key, **{name: getattr(outcome, name) for name in OUTCOME.names}}
            writer.write(outcome.image, key, row.get("caption"), about)
            counts[outcome.status] += 1
            name = outcome.error_message or outcome.status
            if len(outcomes) < MOST_OUTCOMES or name in outcomes:
                outcomes[name] += 1
        writer.close()
        if counts.total() != len(rows):
            raise OSError(f"{len(rows) - counts.total()} of {len(rows)} samples were not written")
        failed = {status: counts[status] for status in ("failed_to_download", "failed_to_resize")}
        return {"count": counts.total(), "successes": counts["success"], **failed, "status_dict": dict(outcomes)}

    def mismatch(self, row: dict[str, Any], sha256: str | None) -> Stored | None:
        """Return the outcome of a file whose hash is not the list's; None if it is, or is not to be compared."""
        expected = row.get(LIST_SHA256) if self.card.download.verify_sha256 and sha256 else None
        if not expected or str(expected).lower() == sha256:
            return None
        return Stored(status="failed_to_download", error_message=f"hash_mismatch: the list says {expected}")

    def _stored(self, number: int, row: dict[str, Any], data: bytes, progress: InProgress) -> Stored:
        """Check, resize and encode an image."""
        sha256 = hashlib.sha256(data).hexdigest()
        if mismatch := self.mismatch(row, sha256):
            return mismatch
        if not progress.survives(number, self.resizer, io.BytesIO(data)):
            return Stored(status="failed_to_resize", error_message=CRASHED)
        image, width, height, original_width, original_height, problem = self.resizer(io.BytesIO(data))
        if problem is not None:
            return Stored(status="failed_to_resize", error_message=problem)
        return Stored(image, "success", None, width, height, original_width, original_height, sha256)


def remove_images(described: Path, keys: set[str], why: str) -> None:
    """Remove images from a shard, by its Parquet file: their bytes, and but for the reason their rows.

    The Parquet file comes last: a killed run is started again with the same keys.
    """
    folder, tar = described.parent, described.with_suffix(".tar")
    with replacing(tar) as part:
        index = shard_index(tar)
        gone = {offset for key, offset in zip(index.keys, index.offsets, strict=True) if key in keys}
        with tarfile.open(tar, "r:") as source, tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as target:
            while (member := source.next()) is not None:
                source.members = []  # type: ignore[attr-defined]  # or they all stay in memory
                if member.offset_data not in gone:
                    target.addfile(member, source.extractfile(member) if member.isreg() else None)
    shard_index(tar)  # written anew: the tar has changed
    table, stats_file = whole_file(described), folder / f"{described.stem}_stats.json"
    outcome = {"status": "failed_to_download", "error_message": why}
    left = emptied(table, is_in(table["key"], keys), outcome, ("key",))
    counts = Counter(left["status"].to_pylist())
    # first the counts: a shard with fewer images than they say is taken for damaged
    write_json(stats_file, json.loads(stats_file.read_text()) | {
        "successes": counts["success"], "failed_to_download": counts["failed_to_download"]
    })  # fmt: skip
    metadata = {**(table.schema.metadata or {}), TAR_SHA256: sha256_of(tar).encode()}
    with replacing(described) as part:
        pq.write_table(left.replace_schema_metadata(metadata), part, compression="zstd")


def emptied(table: pa.Table, rows: Any, values: dict[str, Any], but: tuple[str, ...]) -> pa.Table:
    """Return the table with null, or one of the values, in these rows; the columns ``but`` stay."""
    columns = [
        column if name in but else pc.if_else(rows, pa.scalar(values.get(name), column.type), column)
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    return pa.table(columns, schema=table.schema)


def is_in(column: pa.ChunkedArray, values: set[str]) -> pa.ChunkedArray:
    return pc.is_in(column.cast(pa.string()), pa.array(sorted(values), pa.string()))


@dataclass(kw_only=True)
class PassMaker(ShardMaker):
    """Maker of the shards of one pass over a list of URLs, which has a row group for each."""

    listed: Path
    columns: list[str]
    first_shard: int = 0
    left_out: dict[int, set[int]] = field(default_factory=dict)  # shard: rows that are not to be fetched here

    def __post_init__(self) -> None:
        super().__post_init__()
        self.digits = math.ceil(math.log10(self.card.download.samples_per_shard))

    def rows_of(self, shard: int) -> pa.Table:
        """Return the rows of a shard: a row group of the pass's list."""
        return row_group(self.listed, shard - self.first_shard).select(self.columns)


class OrderedWriter:
    """Writer of img2dataset's webdataset layout (NNNNN.tar and .parquet), sorted by key, undated, and NNNNN.index.

    Samples arrive in any order: their bytes wait in a spool file, their metadata in memory.
    """

    def __init__(self, path: Path, schema: pa.Schema, encode_format: str) -> None:
        """path: of the files, without a suffix."""
        self.path, self.schema, self.encode_format = path, schema, encode_format
        self.spool = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 (closed in close)
        self.rows: list[dict[str, Any]] = []
        self.samples: list[tuple[str, list[tuple[str, int, int]]]] = []

    def write(self, image: bytes | None, key: str, caption: str | None, about: dict[str, Any]) -> None:
        """Take one sample; ``image`` is None where there is none."""
        if image is not None:
            text = str(caption if caption is not None else "").encode()
            parts = [(self.encode_format, image), ("json", json.dumps(about, indent=4).encode()), ("txt", text)]
            places = []
            for extension, data in sorted(parts):
                places.append((extension, self.spool.tell(), len(data)))
                self.spool.write(data)
            self.samples.append((key, places))
        self.rows.append(about)

    def close(self) -> None:
        """Write the tar, the Parquet file with the tar's hash, and the index."""
        try:
            self.rows.sort(key=lambda row: row["key"])
            members, written = [], hashlib.sha256()
            with open(self.path.with_suffix(".tar"), "wb") as tar:
                for key, places in sorted(self.samples):
                    for extension, start, size in places:
                        self.spool.seek(start)
                        name = f"{key}.{extension}"
                        info = tarfile.TarInfo(name)
                        info.size, info.mode, info.mtime = size, 0o444, 0
                        info.uname = info.gname = "bigdata"  # as webdataset's TarWriter sets it
                        header = info.tobuf(tarfile.USTAR_FORMAT)
                        content = self.spool.read(size) + b"\0" * (-size % tarfile.BLOCKSIZE)
                        members.append(Member(name, tar.tell() + len(header), size))
                        tar.write(header + content)
                        written.update(header + content)
                end = b"\0" * (2 * tarfile.BLOCKSIZE)
                tar.write(end)
                written.update(end)
            # the hash of the images as stored goes into their description
            metadata = {**(self.schema.metadata or {}), TAR_SHA256: written.hexdigest().encode()}
            table = pa.Table.from_pylist(self.rows, self.schema).replace_schema_metadata(metadata)
            pq.write_table(table, self.path.with_suffix(".parquet"), compression="zstd")
            write_index(self.path.with_suffix(".tar"), index_of(members))
        finally:
            self.spool.close()


class InProgress:
    """A file that holds the number of the image being decoded: one line for each process that worked on the shard.

    Without it one image that kills its process (there is one among millions: a decoder crashes, or memory runs out)
    stops its shard each time, and with it the whole download.

    A number that a killed process left is not proof: the whole run may have been killed. That image is decoded in a
    separate process, and is given up only if that process dies as well.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.suspects = path, suspects(path)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT)
        self._end = os.lseek(self._file, 0, os.SEEK_END)

    def survives(self, number: int, decode: Callable[..., Any], *arguments: Any) -> bool:
        """Note that image ``number`` comes next; False if ``decode(*arguments)`` would kill this process."""
        if number not in self.suspects:
            os.pwrite(self._file, f"{number:<11}\n".encode(), self._end)
            return True
        alone = get_context("spawn").Process(target=decode, args=arguments)
        alone.start()
        alone.join(SECONDS_ALONE)
        exit_code = alone.exitcode
        alone.kill()
        return exit_code == 0

    def forget(self) -> None:
        """Remove the note."""
        self.path.unlink(missing_ok=True)  # a worker that a cluster presumed lost may do the same shard

    def close(self) -> None:
        """End the work on the shard."""
        os.close(self._file)


def suspects(path: Path) -> set[int]:
    """Return the numbers of the images that were being decoded when a process died; none if no such file exists."""
    return {int(number) for number in path.read_text().split()} if path.exists() else set()
