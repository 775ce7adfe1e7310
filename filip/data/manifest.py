"""Describe a data set in a manifest: its content, and one hash that changes with it.

    python -m filip.data.manifest source=cc12m list=list.parquet kept=kept.parquet shards=SHARDS captions=CAPTIONS \\
        funnels=[text_rules.json,download.json,translate.json] out=manifest.json

The images are not read again: each shard's Parquet file holds the SHA-256 of its tar, taken while it was written.
docs/data.md has a line that compares the two. A training run records ``manifest_hash`` and warns when it resumes on
another one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.common.files import digest, sha256_of, write_json
from filip.data.cards import SourceCard, load_source, overridden
from filip.data.funnel import merge, read_fragment
from filip.data.lists.parquet_rows import reading, whole_file
from filip.data.shard_set import read_manifest, shard_entries

INPUTS = ("list", "kept")
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
    """Return the manifest. Raises UserError when a shard has no side-car, or the stages do not fit together."""
    shards, captions = Path(config.shards), Path(config.captions)
    content = _content(shards, captions)
    stages = merge(read_fragment(path) for path in config.funnels)["stages"]
    images = content["images"]["count"]
    for stage in stages:
        if stage["stage"] in ("download", "ingest") and stage["out"] != images:
            raise UserError(
                f"stage '{stage['stage']}' gave out {stage['out']:,} images, but the {len(content['shards'])} shards "
                f"of {shards} hold {images:,}: shards are missing, or the funnel is stale. Run that stage again"
            )
    settings = asdict(card)
    deciding = ("group_column", "text_rules", "image_rules", "download", "back_translation")
    rules = {name: settings[name] for name in deciding}
    return {
        "source": card.name,
        "title": card.title,
        "license": card.license,
        "sha256": _signature(rules, content),
        "inputs": {name: _input(Path(getattr(config, name))) for name in INPUTS} | {"settings_sha256": digest(rules)},
        "settings": rules,
        "stages": stages,
        **content,
        "folders": {"shards": str(shards.resolve()), "captions": str(captions.resolve())},
    }


def sign_again(path: Path, forgotten: int, reason: str) -> None:
    """Describe a data set anew after images were removed from it; its funnel gets a stage with their number."""
    manifest = read_manifest(path)
    before = manifest["images"]["count"]
    manifest |= _content(Path(manifest["folders"]["shards"]), Path(manifest["folders"]["captions"]))
    manifest["sha256"] = _signature(manifest["settings"], manifest)
    for name in INPUTS:
        listed = Path(manifest["inputs"][name]["path"])
        if listed.exists():
            manifest["inputs"][name] = _input(listed)
    gone = before - manifest["images"]["count"]
    manifest.setdefault("forgotten", []).append({"asked": forgotten, "images": gone, "reason": reason})
    write_json(path, manifest)


def _content(shards: Path, captions: Path) -> dict[str, Any]:
    """Return the images and their bytes, the captions by their origin, and the shards."""
    entries = shard_entries(shards, captions)
    rows, origins = 0, Counter[str]()
    for entry in entries:
        sidecar = captions / f"{entry['name']}.parquet"
        with reading(sidecar):
            column = whole_file(sidecar, ["origins"])["origins"]
        rows += len(column)
        for found in pc.value_counts(pc.list_flatten(column)).to_pylist():
            origins[found["values"]] += found["counts"]
    total = origins.total()
    return {
        "images": {"count": sum(e["images"] for e in entries), "bytes": sum(e["tar_bytes"] for e in entries)},
        "captions": {
            "images": rows,
            "count": total,
            "per_image": round(total / max(1, rows), 4),
            "origins": dict(sorted(origins.items())),
        },
        "shards": entries,
    }


def _signature(rules: dict[str, Any], content: dict[str, Any]) -> str:
    """Return a hash of what training sees: not of paths, time-outs, or rules that changed nothing."""
    names = ("image_size", "resize_mode", "only_if_bigger", "encode_format", "encode_quality")
    return digest([{name: rules["download"][name] for name in names}, content["shards"]])


def _input(path: Path) -> dict[str, Any]:
    with reading(path):
        rows = pq.read_metadata(path).num_rows
    return {"path": str(path), "rows": rows, "sha256": sha256_of(path)}


if __name__ == "__main__":
    run_command(main, ManifestConfig)
