"""Read a folder of shards: size and hash of each shard, and the manifest about them.

The training reads these too, so nothing here imports the downloader or DuckDB.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from filip.common.errors import UserError
from filip.common.files import json_record, sha256_of
from filip.data.lists.parquet_rows import reading

TAR_SHA256 = b"tar_sha256"  # key in the metadata of NNNNN.parquet for the hash of NNNNN.tar as it was written
THREADS = 8
PROVEN = 3  # tars that each start of a training hashes


def shard_entries(shards: Path, captions: Path, read_tars: bool = True) -> list[dict[str, Any]]:
    """Return for each shard: name, images, sizes, hashes. ``read_tars``: hash also tars without a noted hash."""
    tars = sorted(shards.glob("*.tar"))
    if not tars:
        raise UserError(f"no NNNNN.tar in {shards}: give the folder that `filip data download` filled")
    lost = {path.stem for path in shards.glob("*.parquet")} - {tar.stem for tar in tars}
    if lost:
        raise UserError(
            f"{len(lost)} shards of {shards} have a Parquet file and no tar: {', '.join(sorted(lost)[:5])}. Run the "
            "same `filip data download` (or ingest) again: it makes them again"
        )
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda tar: _entry(tar, captions / f"{tar.stem}.parquet", read_tars), tars))


def _entry(tar: Path, sidecar: Path, read_tar: bool) -> dict[str, Any]:
    described = tar.with_suffix(".parquet")
    for path in (described, sidecar):
        if not path.exists():
            raise UserError(f"{tar} has no {path}: run `filip data download` and `filip data translate` to the end")
    with reading(described), pq.ParquetFile(described) as parquet:
        status = parquet.read(columns=["status"])["status"]
        written = (parquet.schema_arrow.metadata or {}).get(TAR_SHA256)
    return {
        "name": tar.stem,
        "images": int(pc.sum(pc.equal(status, "success")).as_py() or 0),
        "tar_bytes": tar.stat().st_size,
        **({"tar_sha256": written.decode() if written else sha256_of(tar)} if written or read_tar else {}),
        "images_sha256": sha256_of(described),
        "captions_sha256": sha256_of(sidecar),
    }


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read a manifest. Raises UserError naming the file when it is not one."""
    return json_record(path, "a data manifest, as `filip data manifest` writes it", "sha256", "folders", "shards")


def manifest_hash(path: str | Path) -> str:
    """Return the hash (64 hex digits) of the data set that the manifest at ``path`` describes."""
    return str(read_manifest(path)["sha256"])


def damaged_tar(path: str | Path) -> str | None:
    """Hash some tars of a manifest, other ones at each start; return a sentence about one whose bytes have changed."""
    manifest = read_manifest(path)
    shards = Path(manifest["folders"]["shards"])
    for entry in random.sample(manifest["shards"], min(PROVEN, len(manifest["shards"]))):
        tar = shards / f"{entry['name']}.tar"
        try:
            intact, fault = sha256_of(tar) == entry["tar_sha256"], f"the bytes of {tar} are not those that were written"
        except OSError as error:
            intact, fault = False, str(error)
        if not intact:
            return f"shard {tar.stem}: {fault}; restore it, or delete it and run the same download again"
    return None


def changed_since(path: str | Path) -> list[str]:
    """Return what differs between a manifest and the folders it describes, by size and hash; [] if nothing does."""
    manifest = read_manifest(path)
    folders = manifest["folders"]
    try:
        entries = shard_entries(Path(folders["shards"]), Path(folders["captions"]), read_tars=False)
    except UserError as error:
        return [str(error)]
    then, now = ({entry["name"]: entry for entry in shards} for shards in (manifest["shards"], entries))
    changes = [f"shard {name} is new" for name in sorted(set(now) - set(then))]
    changes += [f"shard {name} is gone" for name in sorted(set(then) - set(now))]
    for name in sorted(set(then) & set(now)):
        differing = [key for key in now[name] if then[name].get(key) != now[name][key]]
        if differing:
            changes.append(f"shard {name}: {', '.join(differing)} changed")
    return changes
