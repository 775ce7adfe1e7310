"""Check a data set against its manifest: nothing gone, nothing new, and every tar still as it was written.

    python -m filip.data.verify manifest=manifest.json

Every tar is read once. A training reads three of them at each start.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.common.progress import track
from filip.data.shard_set import changed_since, fault_of, read_manifest

SHOWN = 20


@dataclass
class VerifyConfig:
    manifest: str = option(MISSING, "manifest of the data set, as `filip data manifest` wrote it")
    threads: int = option(4, "tars read at once", at_least=1)


def main(config: VerifyConfig) -> None:
    """Compare a data set with its manifest, image bytes included; fails if anything differs."""
    faults = verify(config.manifest, config.threads)
    manifest = read_manifest(config.manifest)
    if faults:
        more = f"\n  and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(
            f"{config.manifest}: the data set no longer matches its description:\n  "
            + "\n  ".join(faults[:SHOWN])
            + f"{more}\nA damaged shard is made again when NNNNN.tar is deleted and the same download runs again"
        )
    print(
        f"{config.manifest}: {manifest['images']['count']:,} images in {len(manifest['shards'])} shards, as described"
    )


def verify(manifest: str | Path, threads: int = 4) -> list[str]:
    """Return what differs from the manifest, a sentence each; [] if nothing does."""
    described = read_manifest(manifest)
    faults = changed_since(manifest)
    tars = [(Path(described["folders"]["shards"]) / f"{s['name']}.tar", s["tar_sha256"]) for s in described["shards"]]
    there = [(tar, expected) for tar, expected in tars if tar.exists()]
    with ThreadPoolExecutor(threads) as pool:
        found = track(pool.map(lambda one: fault_of(*one), there), "verify", "tars", len(there))
        return [*faults, *filter(None, found)]


if __name__ == "__main__":
    run_command(main, VerifyConfig)
