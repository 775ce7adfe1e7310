"""Describe a data set in a manifest: its content, and one hash that changes with it.

    python -m filip.data.manifest source=cc12m list=list.parquet kept=kept.parquet shards=SHARDS captions=CAPTIONS \\
        funnels=[text_rules.json,download.json,translate.json] out=manifest.json

The images are not read again: each shard's Parquet file holds the SHA-256 of its tar, taken while it was written.
``python -m filip.data.verify`` compares the two. A training run records ``manifest_hash`` and warns when it resumes on
another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.common.files import digest, sha256_of, write_json
from filip.data.cards import SourceCard, load_source, overridden
from filip.data.funnel import merge, read_fragment
from filip.data.lists import duckdb_io
from filip.data.lists.parquet_rows import reading
from filip.data.shard_set import read_manifest, shard_entries
from filip.data.stage import work_folder

Paths = list[str]  # inside ManifestConfig the name `list` is a field


@dataclass
class ManifestConfig:
    source: str = option(MISSING, "source card (name or path)")
    list: str = option(MISSING, "the whole URL list, Parquet")
    kept: str = option(MISSING, "list that the text rules kept, Parquet")
    shards: str = option(MISSING, "folder of the shards")
    captions: str = option(MISSING, "folder of the side-cars")
    funnels: Paths = option([], "funnel fragments in the order of the stages")
    out: str = option(MISSING, "manifest to write, JSON", writes="file")
    threads: int = option(2, "DuckDB threads", at_least=1)
    memory: str = option("1GB", "DuckDB memory; the rest spills to disk next to `out`")
    download: dict[str, Any] = option({}, "overrides of the card's, as the download had them")


def main(config: ManifestConfig) -> None:
    """Describe a finished data set in one file, with a hash of everything that training will see."""
    manifest = make_manifest(overridden(load_source(config.source), "download", config.download), config)
    write_json(config.out, manifest)
    images, captions = manifest["images"], manifest["captions"]
    print(
        f"{config.out}: {images['count']:,} images in {len(manifest['shards'])} shards "
        f"({images['bytes'] / 1e9:.2f} GB), {captions['per_image']:.2f} captions per image, "
        f"sha256 {manifest['sha256'][:12]}"
    )


def make_manifest(card: SourceCard, config: ManifestConfig) -> dict[str, Any]:
    """Return the manifest; intermediate files are written next to ``config.out``.

    Raises UserError when a shard has no side-car, or the stages do not fit together.
    """
    shards, captions = Path(config.shards), Path(config.captions)
    entries = shard_entries(shards, captions)
    stages = merge(read_fragment(path) for path in config.funnels)["stages"]
    images = sum(entry["images"] for entry in entries)
    for stage in stages:
        if stage["stage"] in ("download", "ingest") and stage["out"] != images:
            raise UserError(
                f"stage '{stage['stage']}' gave out {stage['out']:,} images, but the {len(entries)} shards of "
                f"{shards} hold {images:,}: shards are missing, or the funnel is stale. Run that stage again"
            )
    with work_folder(config.out, config.threads, config.memory) as (_, con), duckdb_io.plain_errors(con, "manifest"):
        statistics = caption_statistics(con, [captions / f"{entry['name']}.parquet" for entry in entries])
    rules = {
        key: value
        for key, value in asdict(card).items()
        if key in ("text_rules", "image_rules", "download", "back_translation", "group_column")
    }
    return {
        "source": card.name,
        "title": card.title,
        "license": card.license,
        # hash of what training sees: not of paths, time-outs, or rules that changed nothing
        "sha256": digest([_pictures(rules), entries]),
        "inputs": {
            "list": _input(Path(config.list)),
            "kept": _input(Path(config.kept)),
            "settings_sha256": digest(rules),
        },
        "settings": rules,
        "stages": stages,
        "images": {"count": images, "bytes": sum(entry["tar_bytes"] for entry in entries)},
        "captions": statistics,
        "shards": entries,
        "folders": {"shards": str(shards.resolve()), "captions": str(captions.resolve())},
    }


def sign_again(path: Path, forgotten: int, reason: str) -> None:
    """Describe a data set anew after images were removed from it; its funnel gets a stage with their number."""
    manifest = read_manifest(path)
    folders = {name: Path(place) for name, place in manifest["folders"].items()}
    entries = shard_entries(folders["shards"], folders["captions"])
    before, count = manifest["images"]["count"], sum(entry["images"] for entry in entries)
    sidecars = [folders["captions"] / f"{entry['name']}.parquet" for entry in entries]
    with work_folder(path) as (_, con):
        manifest["captions"] = caption_statistics(con, sidecars)
    manifest["sha256"] = digest([_pictures(manifest["settings"]), entries])
    manifest["shards"] = entries
    manifest["images"] = {"count": count, "bytes": sum(entry["tar_bytes"] for entry in entries)}
    for name in ("list", "kept"):
        listed = Path(manifest["inputs"][name]["path"])
        if listed.exists():
            manifest["inputs"][name] = _input(listed)
    manifest.setdefault("forgotten", []).append({"asked": forgotten, "images": before - count, "reason": reason})
    write_json(path, manifest)


def _pictures(rules: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that decide how an image is stored."""
    names = ("image_size", "resize_mode", "only_if_bigger", "encode_format", "encode_quality")
    return {name: rules["download"][name] for name in names}


def _input(path: Path) -> dict[str, Any]:
    with reading(path):
        rows = pq.read_metadata(path).num_rows
    return {"path": str(path), "rows": rows, "sha256": sha256_of(path)}


def caption_statistics(con: duckdb.DuckDBPyConnection, sidecars: Sequence[Path]) -> dict[str, Any]:
    """Return the images, their captions, captions per image, and how often each origin occurs."""
    files = duckdb_io.parquet(sidecars)
    images = con.sql(f"SELECT count(*) FROM {files}").fetchall()[0][0]
    unnested = f"(SELECT unnest(origins) AS origin FROM {files})"
    origins = dict(con.sql(f"SELECT origin, count(*) FROM {unnested} GROUP BY 1 ORDER BY 1").fetchall())
    count = sum(origins.values())
    return {"images": images, "count": count, "per_image": round(count / max(1, images), 4), "origins": origins}


if __name__ == "__main__":
    run_command(main, ManifestConfig)
