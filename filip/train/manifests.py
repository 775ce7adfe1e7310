"""The manifests of a run's data: read at the start, compared with the data when a run resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from filip.data.loading.config import DataConfig, Source, is_streamed
from filip.data.remote_tars import address
from filip.data.shard_set import changed_since, manifest_hash, read_manifest
from filip.errors import UserError
from filip.train.config import TrainConfig


def read_manifests(config: TrainConfig) -> dict[str, str]:
    """Return {shards folder: hash in its manifest}. Raise UserError for a given manifest that cannot be read."""
    return {
        source.shards: manifest_hash(source.manifest) for source in config.data.sources if source.manifest is not None
    }


def as_they_lie(data: DataConfig) -> DataConfig:
    """Return the settings with the address of shards whose tars are in a bucket, and with their number of pairs."""
    return replace(data, sources=[_as_it_lies(source) for source in data.sources])


def _as_it_lies(source: Source) -> Source:
    if not is_streamed(source.shards):
        bucket = address(min(Path(source.shards).glob("*.tar"), default=Path()))
        if bucket is None:
            return source
        source = replace(source, shards=bucket.rpartition("/")[0])
    if source.pairs is None and source.manifest is not None:
        source = replace(source, pairs=read_manifest(source.manifest)["captions"]["images"])
    return source


def refuse_changed_data(config: TrainConfig) -> None:
    """Raise UserError if the data of a source no longer match its manifest.

    This reads every side-car: call it on one rank only.
    """
    for source in config.data.sources:
        if source.manifest is None or not (changed := changed_since(source.manifest)):
            continue
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"the data no longer match {source.manifest}: {'; '.join(changed[:3])}{more}. Restore them, or write the "
            "manifest again with python -m filip.data.manifest and start a new run"
        )
