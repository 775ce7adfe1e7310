"""Data that changed since their manifest was written are noticed before a run resumes on them."""

from pathlib import Path

import pytest

from filip.command import compose_config
from filip.data import manifest
from filip.data.sidecar import write_sidecar
from filip.errors import UserError
from filip.train.config import TrainConfig
from filip.train.manifests import refuse_changed_data
from tests.data.test_manifest import data_set


def test_changed_captions_are_refused_until_the_manifest_is_written_again(tmp_path: Path) -> None:
    described = data_set(tmp_path / "data")
    manifest.main(described)
    source = f"{{shards: {described.shards}, captions: {described.captions}, manifest: {described.out}}}"
    places = ["run_dir=-", "out=-"]
    config = compose_config(TrainConfig, ["experiment=demo", *places, f"data.sources=[{source}]"], "train")
    refuse_changed_data(config)
    row = {"key": "10", "captions": ["another one"], "origins": ["original"], "group": 5}
    write_sidecar(Path(described.captions) / "00001.parquet", [row])
    with pytest.raises(UserError, match=r"manifest\.json: shard 00001: .*captions.* changed"):
        refuse_changed_data(config)
    manifest.main(described)
    refuse_changed_data(config)
