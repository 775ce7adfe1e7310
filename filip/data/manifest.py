"""The manifest: what a data set consists of, in one file with one hash.

    python -m filip.data.manifest source=data/demo.yaml list=list.parquet kept=kept.parquet shards=shards \\
        captions=captions 'funnels=[text_rules.json,download.json]' out=manifest.json

A training run records ``sha256``; when it resumes on another data set it notices.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from filip.command import MISSING, option, run_command
from filip.data.atomic import digest, sha256_of, write_json
from filip.data.cards import load_source
from filip.data.funnel import read_fragment
from filip.errors import UserError


@dataclass
class ManifestConfig:
    source: str = option(MISSING, "source card")
    list: str = option(MISSING, "list.parquet")
    kept: str = option(MISSING, "kept.parquet")
    shards: str = option(MISSING, "folder of shards")
    captions: str = option(MISSING, "folder of caption side-cars")
    funnels: list[str] = option([], "funnel fragments of the stages")
    out: str = option(MISSING, "manifest.json to write")


def main(config: ManifestConfig) -> None:
    """Write the manifest of a data set: counts by stage, inputs, shards with sizes and hashes, captions."""
    card = load_source(config.source)
    shards = [shard_entry(tar, Path(config.captions)) for tar in sorted(Path(config.shards).glob("*.tar"))]
    if not shards:
        raise UserError(f"{config.shards} holds no *.tar; give the folder that filip.data.download wrote")
    content: dict[str, Any] = {
        "source": card.name,
        "card": digest(asdict(card)),
        "list": sha256_of(config.list),
        "kept": sha256_of(config.kept),
        "shards": shards,
    }
    manifest = {
        "sha256": digest(content),
        **content,
        "stages": [read_fragment(path).as_dict() for path in config.funnels],
        "pairs": sum(shard["pairs"] for shard in shards),
        "candidate_captions": sum(shard["candidates"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
    }
    write_json(config.out, manifest)
    print(
        f"{config.out}: {manifest['pairs']:,} pairs in {len(shards)} shards, sha256 {manifest['sha256'][:12]}"
    )


def shard_entry(tar: Path, captions: Path) -> dict[str, Any]:
    """Name, size and hashes of a shard and its side-car, and what the side-car holds."""
    sidecar = captions / f"{tar.stem}.parquet"
    if not sidecar.is_file():
        raise UserError(f"shard {tar} has no side-car {sidecar}; run filip.data.translate again")
    lengths = pc.list_value_length(pq.read_table(sidecar, columns=["captions"])["captions"])
    return {
        "name": tar.name,
        "bytes": tar.stat().st_size,
        "sha256": sha256_of(tar),
        "captions_sha256": sha256_of(sidecar),
        "pairs": len(lengths),
        "candidates": pc.sum(lengths).as_py() or 0,
    }


def manifest_hash(path: str | Path) -> str:
    """The ``sha256`` of a manifest. Raises UserError if there is none to read."""
    try:
        return str(json.loads(Path(path).read_text())["sha256"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot read the manifest {path}: {error}; write it with filip.data.manifest"
        ) from error


if __name__ == "__main__":
    run_command(main, ManifestConfig)
