"""The manifests of a run's data: read at the start, compared with the data when a run resumes."""

from __future__ import annotations

from filip.data.manifest import changed_since, manifest_hash
from filip.errors import UserError
from filip.train.config import TrainConfig


def read_manifests(config: TrainConfig) -> dict[str, str]:
    """Return {shards folder: hash in its manifest}. Raise UserError for a given manifest that cannot be read."""
    return {
        source.shards: manifest_hash(source.manifest)
        for source in config.data.sources
        if source.manifest is not None
    }


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
