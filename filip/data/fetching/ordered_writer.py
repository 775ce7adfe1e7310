"""Write img2dataset's shard files, in the order of the list and without time stamps, and their index."""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from filip.data.fetching.outcomes import TAR_SHA256
from filip.data.loading.shard_index import index_of, write_index
from filip.sets.tar_index import Member


class OrderedWriter:
    """Writer of img2dataset's webdataset layout (NNNNN.tar and .parquet), sorted by key, undated, and NNNNN.index.

    Samples arrive in any order: their bytes wait in a spool file, their metadata in memory.
    """

    def __init__(
        self,
        shard_id: int,
        output_folder: str,
        save_caption: bool,
        oom_shard_count: int,
        schema: pa.Schema,
        encode_format: str,
    ) -> None:
        self.path = Path(output_folder) / f"{shard_id:0{oom_shard_count}d}"
        self.schema, self.save_caption, self.encode_format = schema, save_caption, encode_format
        self.spool = tempfile.TemporaryFile(dir=output_folder)  # noqa: SIM115 (closed in close)
        self.rows: list[dict[str, Any]] = []
        self.samples: list[tuple[str, list[tuple[str, int, int]]]] = []
        self.failure: Exception | None = None

    def write(self, img_str: bytes | None, key: str, caption: str | None, meta: dict[str, Any]) -> None:
        """Take one sample; ``img_str`` is None where the download failed. A failure is raised again by close()."""
        if self.failure:
            return
        try:  # img2dataset prints what is raised here and continues without the sample
            if img_str is not None:
                parts = [(self.encode_format, img_str), ("json", json.dumps(meta, indent=4).encode())]
                if self.save_caption:
                    parts.append(("txt", str(caption if caption is not None else "").encode()))
                places = []
                for extension, data in sorted(parts):
                    places.append((extension, self.spool.tell(), len(data)))
                    self.spool.write(data)
                self.samples.append((key, places))
            self.rows.append(meta)
        except Exception as error:
            self.failure = error
            raise

    def close(self) -> None:
        """Write the tar, the Parquet file with the tar's hash, and the index."""
        try:
            if self.failure:
                raise self.failure
            self.rows.sort(key=lambda row: row["key"])
            members, written = [], hashlib.sha256()
            with open(self.path.with_suffix(".tar"), "wb") as tar:
                for key, places in sorted(self.samples):
                    for extension, start, size in places:
                        self.spool.seek(start)
                        name = f"{key}.{extension}"
                        header = _tar_header(name, size)
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


def _tar_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o444, 0
    info.uname = info.gname = "bigdata"  # as webdataset's TarWriter sets it
    return info.tobuf(tarfile.USTAR_FORMAT)
