"""Forget images: remove their bytes, captions and entries from a data set, and sign its manifest again.

    python -m filip.data.forget shards=SHARDS captions=[CAPTIONS,SCORED] lists=[list.parquet,kept.parquet] \\
        manifests=[manifest.json] urls=urls.txt sha256=hashes.txt phash=hashes.txt

For takedowns: images that the rules drop stay in the tars, forgotten ones do not. Each image loses its files in the
tar, its row in every side-car, its texts in the cache of translations, its rows in the lists, its samples in funnels,
and its row in the shard's Parquet file. Hashes of the requests stay in ``SHARDS/_work/forgotten.json``, so
that no later download or ingest brings it back. A killed run is started again with the same command.
"""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.common.files import nothing_at, replacing, sha256_of, write_json
from filip.common.progress import track
from filip.data.fetching.download_plan import ROW, SHARD, in_progress
from filip.data.fetching.outcomes import FORGOTTEN, Forgotten, hash_of_url, place_of
from filip.data.lists import duckdb_io
from filip.data.lists.parquet_rows import reading, whole_file
from filip.data.manifest import sign_again
from filip.data.remote_tars import address, local, send
from filip.data.shard_index import shard_index
from filip.data.shard_set import TAR_SHA256
from filip.data.sidecar import write_sidecar
from filip.data.stage import filling, work_folder
from filip.data.translate import shard_files

Paths = list[str]
SHOWN = 200  # characters of a text that a funnel shows


@dataclass
class ForgetConfig:
    shards: str = option(MISSING, "folder of the shards")
    captions: Paths = option(MISSING, "all folders of their side-cars: captions, scored, selected")
    lists: Paths = option([], "Parquet lists that name the images: list.parquet, kept.parquet")
    manifests: Paths = option([], "manifests of the data set, which are signed again")
    funnels: Paths = option([], "funnel fragments, whose samples may show the images' captions")
    urls: str | None = option(None, "file of URLs (of images on disk: their names), one a line")
    sha256: str | None = option(None, "file of SHA-256 of the files as they were fetched, 64 hex digits a line")
    phash: str | None = option(None, "file of perceptual hashes, 16 hex digits a line; needs scored side-cars")


def main(config: ForgetConfig) -> None:
    """Remove images with every trace of them, by URL, SHA-256 or perceptual hash."""
    found = forget(config)
    print(f"{config.shards}: {found['images']:,} images forgotten in {found['shards']:,} shards")
    for name, count in found["not_found"].items():
        if count:
            print(f"  {count:,} {name} were not found; they are refused from now on")
    if found["copies"]:
        print(
            f"  {found['copies']:,} other images are the same byte for byte, under other URLs: give their sha256 to "
            "forget them, too"
        )


def forget(config: ForgetConfig) -> dict[str, Any]:
    """Remove the images and return how many. Raises UserError for files without the expected content."""
    asked = {
        "urls": _lines(config.urls, r"\S.*"),
        "sha256": {line.lower() for line in _lines(config.sha256, r"[0-9a-fA-F]{64}")},
        "phash": {line.lower() for line in _lines(config.phash, r"[0-9a-fA-F]{16}")},
    }
    if not any(asked.values()):
        raise UserError("nothing to forget: give urls=FILE, sha256=FILE or phash=FILE, one a line")
    folder = Path(config.shards).resolve()
    files = shard_files(folder)
    for path in [*config.captions, *config.lists, *config.manifests, *config.funnels]:
        if not Path(path).exists():
            raise UserError(nothing_at(path, "name all places that have something of these images"))
    work = folder / "_work"
    with filling(folder):
        with work_folder(folder) as (_, con):
            rows, counts = _find(con, files, asked, config)
        urls, lists = {row["url"] for row in rows}, [*map(Path, config.lists), *work.glob("*.parquet")]
        Forgotten.load(folder).add(
            {hash_of_url(name) for name in asked["urls"] | urls | _places(lists, urls)},
            asked["sha256"] | {row["sha256"] for row in rows if row["by_phash"]},
        )
        by_shard: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_shard.setdefault(str(row["shard"]), []).append(row)
        captions = {text for row in rows for text in row["captions"] if text}
        for place in config.captions:
            for cached in Path(place).glob("_cache/*/*.parquet"):
                _without(cached, "text", captions)
        for listed in lists:
            _without(listed, "url", urls)
        # a download by img2dataset that is not finished: it fetches again what is here, without these images
        shutil.rmtree(in_progress(folder), ignore_errors=True)
        for listing in work.glob("found/*.parquet"):  # by which list.parquet is made: ingest lists anew
            listing.unlink()
        for shard in track(sorted(by_shard), "forget", "shards", total=len(by_shard)):
            _forget_in_shard(folder, shard, by_shard[shard], [Path(place) for place in config.captions])
        for path in [*config.funnels, *config.manifests]:
            _scrub(Path(path), {" ".join(text.split())[:SHOWN] for text in captions | urls})
        for manifest in config.manifests:
            sign_again(Path(manifest), len(rows), FORGOTTEN)
    return {"images": len(rows), "shards": len(by_shard), **counts}


def _places(lists: list[Path], urls: set[str]) -> set[str]:
    """Return the places of images on disk, by ingest's lists."""
    listed = [path for path in lists if urls and {"_file", "_position"} <= set(pq.read_schema(path).names)]
    tables = [pq.read_table(path, columns=["_file", "_position"], filters=[("url", "in", urls)]) for path in listed]
    return {place_of(row["_file"], row["_position"]) for table in tables for row in table.to_pylist()}


def _scrub(path: Path, gone: set[str]) -> None:
    """Remove the samples with one of these texts from a funnel, or from a file of several."""
    content = json.loads(path.read_text())
    for fragment in content.get("stages", [content]):
        fragment["notes"] = _without_texts(fragment.get("notes", {}), gone)
    write_json(path, content)


def _without_texts(value: Any, gone: set[str]) -> Any:
    """Return JSON without the items of its lists that are, or hold, one of these texts, maybe with a remark behind."""
    if isinstance(value, dict):
        return {name: _without_texts(part, gone) for name, part in value.items()}
    if not isinstance(value, list):
        return value
    texts = [item.values() if isinstance(item, dict) else [item] for item in value]
    shown = [{form for text in found for form in (str(text), str(text).rpartition(" (")[0])} for found in texts]
    return [item for item, found in zip(value, shown, strict=True) if not {" ".join(t.split()) for t in found} & gone]


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


def _find(
    con: Any, files: list[Path], asked: dict[str, set[str]], config: ForgetConfig
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the requested rows of the shards, the requests without an image, and how many have copies elsewhere."""
    # an image that a killed run was at may have no score any more by which it could be found
    before = Forgotten.load(Path(config.shards)).files
    for name, values in (*asked.items(), ("files", asked["sha256"] | before)):
        con.register(f"asked_{name}", pa.table({"value": pa.array(sorted(values), pa.string())}))
    names = pq.read_schema(files[0]).names
    texts = "captions" if "captions" in names else "[caption]"
    columns = ["url", "key", "sha256", "captions" if "captions" in names else "caption"]
    listed = (
        f"(SELECT {duckdb_io.FILE_STEM} AS shard, key, url, CAST(sha256 AS VARCHAR) AS sha256, {texts} AS captions "
        f"FROM {duckdb_io.columns_of_many(files, columns, duckdb_io.WITH_FILE)} WHERE url IS NOT NULL)"
    )
    alike = "(SELECT NULL::VARCHAR AS shard, NULL::VARCHAR AS key, NULL::VARCHAR AS phash WHERE false)"
    if asked["phash"]:
        sidecars = [sorted(Path(folder).glob("*.parquet")) for folder in config.captions]
        scored = [files for files in sidecars if files and "phash" in pq.read_schema(files[0]).names]
        if not scored:
            raise UserError(
                "phash= needs side-cars with perceptual hashes: run `filip data score`, and name its folder in "
                "captions="
            )
        source = duckdb_io.parquet(scored[0], duckdb_io.WITH_FILE)
        alike = f"(SELECT {duckdb_io.FILE_STEM} AS shard, key, printf('%016x', phash) AS phash FROM {source})"
    con.execute(
        f"""CREATE TEMP TABLE found AS SELECT l.*, a.phash, a.phash IN (FROM asked_phash) AS by_phash,
            url IN (FROM asked_urls) AS by_url, coalesce(sha256 IN (FROM asked_files), false) AS by_sha
        FROM {listed} l LEFT JOIN {alike} a USING (shard, key)
        WHERE url IN (FROM asked_urls) OR sha256 IN (FROM asked_files) OR a.phash IN (FROM asked_phash)"""
    )
    copies = con.sql(
        f"""SELECT count(*) FROM {listed} l SEMI JOIN found USING (sha256)
            ANTI JOIN found f ON f.shard = l.shard AND f.key = l.key"""
    ).fetchall()[0][0]
    missing = {
        name: con.sql(f"SELECT count(*) FROM asked_{name} ANTI JOIN found ON value = {column}").fetchall()[0][0]
        for name, column in (("urls", "url"), ("sha256", "sha256"), ("phash", "phash"))
    }
    rows = con.sql("SELECT * FROM found ORDER BY shard, key").to_arrow_table().to_pylist()
    return rows, {"not_found": missing, "copies": copies}


def _without(path: Path, column: str, values: set[str]) -> None:
    """Rewrite a Parquet file without the rows that have one of the values, if it has any; row groups stay.

    In a list of URLs that are tried again the rows are emptied instead: their places remain.
    """
    with reading(path):
        parquet = pq.ParquetFile(path)
    with parquet:
        if column not in parquet.schema_arrow.names or not values:
            return
        wanted = pa.array(sorted(values), pa.string())
        column_of = (parquet.read_row_group(n, [column])[column] for n in range(parquet.num_row_groups))
        if not any(pc.any(pc.is_in(found.cast(pa.string()), wanted)).as_py() for found in column_of):
            return
        schema = parquet.schema_arrow
        with replacing(path) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
            for number in range(parquet.num_row_groups):
                table = parquet.read_row_group(number)
                gone = pc.is_in(table[column].cast(pa.string()), wanted)
                if SHARD in schema.names:
                    kept = _emptied(table, gone, {column: "", "caption": ""}, (SHARD, ROW))
                else:
                    kept = table.filter(pc.invert(gone))
                writer.write_table(kept.combine_chunks(), max(1, len(kept)))


def _emptied(table: pa.Table, rows: Any, values: dict[str, Any], but: tuple[str, ...]) -> pa.Table:
    """Return the table with null, or one of the values, in these rows; the columns ``but`` stay."""
    columns = [
        column if name in but else pc.if_else(rows, pa.scalar(values.get(name), column.type), column)
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    return pa.table(columns, schema=table.schema)


def _forget_in_shard(folder: Path, shard: str, rows: list[dict[str, Any]], captions: list[Path]) -> None:
    """Remove rows from a shard; its Parquet file, by which they are found, comes last."""
    keys = {row["key"] for row in rows}
    names = pa.array(sorted(keys), pa.string())
    for place in captions:
        for kept in ("_measured/*", "_cache/*-image-*"):  # scores, and captions made of the images
            for measured in place.glob(f"{kept}/{shard}-*.parquet"):
                measured.unlink()
        path = place / f"{shard}.parquet"
        if path.exists():
            table = whole_file(path)
            write_sidecar(path, table.filter(pc.invert(pc.is_in(table["key"], names))))
    tar = folder / f"{shard}.tar"
    bucket = address(tar)
    with local(tar, folder / "_work") as before, replacing(tar) as part:
        _copy_tar(before, part, keys)
    shard_index(tar)  # written anew: the tar has changed
    answers = tar.with_suffix(".answers")  # the servers' headers, if the shard was downloaded
    if answers.exists():
        told = whole_file(answers)
        with replacing(answers) as part:
            pq.write_table(told.filter(pc.invert(pc.is_in(told["key"], names))), part, compression="zstd")
    described, stats_file = tar.with_suffix(".parquet"), folder / f"{shard}_stats.json"
    table = whole_file(described)
    forgotten = pc.is_in(table["key"], names)
    values = {"status": "failed_to_download", "error_message": f"{FORGOTTEN}: on request"}
    emptied = _emptied(table, forgotten, values, ("key",))
    stored = pc.sum(pc.and_(forgotten, pc.equal(table["status"], "success"))).as_py() or 0
    metadata = {**(table.schema.metadata or {}), TAR_SHA256: sha256_of(tar).encode()}
    with replacing(described) as part:
        pq.write_table(emptied.replace_schema_metadata(metadata), part, compression="zstd")
    stats = json.loads(stats_file.read_text())
    stats["successes"] -= stored
    stats["failed_to_download"] += stored
    write_json(stats_file, stats)
    if bucket is not None:
        send(tar, bucket.rpartition("/")[0], described, stats_file)


def _copy_tar(tar: Path, part: Path, keys: set[str]) -> None:
    """Copy a tar without the files of some keys; a link to somebody's own tar becomes a file."""
    index = shard_index(tar)
    gone = {offset for key, offset in zip(index.keys, index.offsets, strict=True) if key in keys}
    with tarfile.open(tar, "r:") as source, tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as target:
        while (member := source.next()) is not None:
            source.members = []  # type: ignore[attr-defined]  # or they all stay in memory
            if member.offset_data not in gone:
                target.addfile(member, source.extractfile(member) if member.isreg() else None)


if __name__ == "__main__":
    run_command(main, ForgetConfig)
