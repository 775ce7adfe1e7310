"""Forget images: remove their bytes, captions and entries from a data set, and sign its manifest again.

    python -m filip.data.forget shards=SHARDS captions=[CAPTIONS,SCORED] lists=[list.parquet,kept.parquet] \\
        manifests=[manifest.json] urls=urls.txt sha256=hashes.txt

For takedowns: images that the rules drop stay in the tars, forgotten ones do not. Each image loses its files in the
tar, its row in every side-car, its texts in the cache of translations, its rows in the lists, all samples in funnels,
and its row in the shard's Parquet file, by which it is found: that comes last, so that a killed run is started again
with the same command. Hashes of the requests stay in ``SHARDS/_work/forgotten.json``, so that no later download or
ingest brings an image back.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.common.files import json_record, nothing_at, replacing, write_json
from filip.common.progress import track
from filip.data.fetching.download_plan import ROW, SHARD, in_progress
from filip.data.fetching.outcomes import FORGOTTEN, Forgotten, hash_of_url, place_of
from filip.data.fetching.shard_maker import WORK, emptied, is_in, remove_images
from filip.data.lists.parquet_rows import reading, whole_file
from filip.data.manifest import sign_again
from filip.data.shard_set import read_manifest
from filip.data.sidecar import write_sidecar
from filip.data.stage import sharing
from filip.data.translate import shard_files

Paths = list[str]


@dataclass
class ForgetConfig:
    shards: str = option(MISSING, "folder of the shards")
    captions: Paths = option(MISSING, "all folders of their side-cars, such as scored; maybe []", may_be_empty=True)
    lists: Paths = option([], "Parquet lists that name the images: list.parquet, kept.parquet")
    manifests: Paths = option([], "manifests of the data set, which are signed again")
    funnels: Paths = option([], "funnel fragments: their samples, which may show the images' captions, go")
    urls: str | None = option(None, "file of URLs (of images on disk: their names), one a line")
    sha256: str | None = option(None, "file of SHA-256 of the files as they were fetched, 64 hex digits a line")


def main(config: ForgetConfig) -> None:
    """Remove images with every trace of them, by URL or SHA-256."""
    images, shards, missing = forget(config)
    print(f"{config.shards}: {images:,} images forgotten in {shards:,} shards")
    if missing:
        print(f"  {missing:,} of the requests were not found; they are refused from now on")


def forget(config: ForgetConfig) -> tuple[int, int, int]:
    """Remove the images; return how many, of how many shards, and how many requests found none.

    Raises UserError for files without the expected content.
    """
    urls = _lines(config.urls, r"\S.*")
    hashes = {line.lower() for line in _lines(config.sha256, r"[0-9a-fA-F]{64}")}
    if not urls and not hashes:
        raise UserError("nothing to forget: give urls=FILE or sha256=FILE, one a line")
    for path in [*config.captions, *config.lists, *config.manifests, *config.funnels]:
        if not Path(path).exists():
            raise UserError(nothing_at(path, "name all places that have something of these images"))
    for path in config.lists:  # before anything is removed
        with reading(Path(path)):
            pq.read_schema(path)
    described = [*(json_record(path, "a funnel") for path in config.funnels), *map(read_manifest, config.manifests)]
    folder = Path(config.shards).resolve()
    captions, work = [Path(place) for place in config.captions], folder / WORK
    with sharing(folder / WORK, folder):
        rows = {path: found for path in shard_files(folder) if (found := _rows(path, urls, hashes))}
        images = [row for found in rows.values() for row in found]
        names = {row["url"] for row in images}
        lists = [*map(Path, config.lists), *work.glob("*.parquet")]
        Forgotten.load(folder).add({hash_of_url(name) for name in urls | names | _places(lists, names)}, hashes)
        texts = {text for row in images for text in row.get("captions") or [row.get("caption")] if text}
        for place in captions:
            for cached in place.glob("_cache/*/*.parquet"):
                _without(cached, "text", texts)
        for listed in lists:
            _without(listed, "url", names)
        # a download by img2dataset that is not finished: it fetches again what is here, without these images
        shutil.rmtree(in_progress(folder), ignore_errors=True)
        for listing in work.glob("found/*.parquet"):  # by which list.parquet is made: ingest lists anew
            listing.unlink()
        for shard in track(rows, "forget", "shards", total=len(rows)):
            keys = {row["key"] for row in rows[shard]}
            for sidecars in captions:
                for measured in sidecars.glob(f"_measured/{shard.stem}-*.parquet"):  # scores
                    measured.unlink()
                if (sidecar := sidecars / shard.name).exists():
                    table = whole_file(sidecar)
                    write_sidecar(sidecar, table.filter(pc.invert(is_in(table["key"], keys))))
            remove_images(shard, keys, f"{FORGOTTEN}: on request")  # by its row an image is found: that comes last
        for path, content in zip([*config.funnels, *config.manifests], described, strict=True):
            for fragment in content.get("stages", [content]):  # a file of several, or of one
                notes = fragment.get("notes", {})
                fragment["notes"] = {name: notes[name] for name in notes if name not in ("samples", "examples")}
            write_json(path, content)
        for manifest in config.manifests:
            sign_again(Path(manifest), len(images), FORGOTTEN)
    return len(images), len(rows), len(urls - names) + len(hashes - {row["sha256"] for row in images})


def _lines(path: str | None, pattern: str) -> set[str]:
    """Return the distinct lines of a file. Raises UserError for one that is not of the pattern."""
    if path is None:
        return set()
    if not Path(path).is_file():
        raise UserError(nothing_at(path, "give a file with one a line"))
    lines = [line.strip() for line in Path(path).read_text("utf-8-sig").splitlines() if line.strip()]
    odd = next((line for line in lines if not re.fullmatch(pattern, line)), None)
    if odd is not None:
        raise UserError(f"{path} has the line {odd[:80]!r}, which is not {pattern}")
    return set(lines)


def _rows(path: Path, urls: set[str], hashes: set[str]) -> list[dict[str, Any]]:
    """Return the requested rows of a shard."""
    with reading(path):
        names = [name for name in ("url", "key", "sha256", "caption", "captions") if name in pq.read_schema(path).names]
        table = whole_file(path, names)
    asked = [is_in(table["url"], urls), is_in(table["sha256"], hashes)]
    return table.filter(pc.and_(pc.is_valid(table["url"]), pc.or_(*asked))).to_pylist()


def _places(lists: list[Path], urls: set[str]) -> set[str]:
    """Return the places of images on disk, by ingest's lists."""
    listed = [path for path in lists if urls and {"_file", "_position"} <= set(pq.read_schema(path).names)]
    tables = [pq.read_table(path, columns=["_file", "_position"], filters=[("url", "in", urls)]) for path in listed]
    return {place_of(row["_file"], row["_position"]) for table in tables for row in table.to_pylist()}


def _without(path: Path, column: str, values: set[str]) -> None:
    """Rewrite a Parquet file without the rows that have one of the values, if it has any; row groups stay.

    In the lists of a download's passes the rows are emptied instead: their places remain.
    """
    with reading(path), pq.ParquetFile(path) as parquet:
        schema = parquet.schema_arrow
        if column not in schema.names:
            return
        groups = range(parquet.num_row_groups)
        gone = [is_in(parquet.read_row_group(n, [column])[column], values) for n in groups]
        if not any(pc.any(found).as_py() for found in gone):
            return
        with replacing(path) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
            for table, rows in zip(map(parquet.read_row_group, groups), gone, strict=True):
                if re.fullmatch(r"(list|retry)_\d+", path.stem):
                    left = emptied(table, rows, {column: FORGOTTEN, "caption": ""}, (SHARD, ROW))
                else:
                    left = table.filter(pc.invert(rows))
                writer.write_table(left.combine_chunks(), max(1, len(left)))


if __name__ == "__main__":
    run_command(main, ForgetConfig)
