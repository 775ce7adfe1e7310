"""The token selection of base.yaml, scaled down to half a minute, learns: 13 of 49 patches, 8 of 31 words."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from pyarrow import csv

from filip import load
from filip.command import compose_config
from filip.study import load_study, resolve
from filip.tokenizer import token_counts
from filip_demo.patterns import Patterns, main, pattern_scene
from late_interaction.token_selection import kept_count
from tests.support.shards import Sample, encoded, write_shard
from tests.support.training import run_many

ROOT = Path(__file__).parents[2]
BASE = "random_linear"  # the row of the study that drops tokens as base.yaml does


def test_the_pictures_have_the_counts_of_the_paper(tmp_path: Path) -> None:
    main(compose_config(Patterns, [f"out={tmp_path}", "scenes=2", "test_scenes=1"]))
    for row in csv.read_csv(tmp_path / "captions.csv").to_pylist():
        assert Image.open(tmp_path / row["path"]).size == (56, 56)
        patches, words = (56 // 8) ** 2, token_counts([row["caption"]])[0]
        assert (kept_count(patches, 0.25, 1), kept_count(words, 0.25, 1), words) == (13, 8, 31)


@pytest.mark.slow
def test_base_yaml_learns_with_a_quarter_of_the_tokens(tmp_path: Path) -> None:
    """Half of what the record's worst seed finds: seeds differ by a factor of three."""
    study = load_study(ROOT / "workflow/config/quarter.yaml")
    training, rows = study.training(BASE), study.replicas(BASE)
    base, row = resolve("experiment=base"), study.resolved(BASE)
    assert row.token_keep_schedule == (base.token_keep_schedule or "").replace("3000 to 249000", "100 to 300")
    assert (row.token_score, row.token_keep_minimum) == (base.token_score, base.token_keep_minimum)
    record = json.loads((ROOT / "records/quarter.json").read_text())["runs"]
    for shard in range(4):
        scenes = (pattern_scene(0, index) for index in range(600 * shard, 600 * (shard + 1)))
        samples = [Sample(f"{scene.index:07d}", encoded(scene.image), [scene.caption], scene.index) for scene in scenes]
        write_shard(tmp_path, shard, samples)
    sources = f"[{{shards: {tmp_path}/shards, captions: {tmp_path}/captions}}]"
    places = [f"run_dir={tmp_path}/run", f"out={tmp_path}/model.safetensors", f"data.sources={sources}"]
    arguments = [f"experiment={training['experiment']}", *training["overrides"], *places]
    assert run_many(1, [["-m", "filip.train", *arguments]], tmp_path / "log") == [0], (tmp_path / "log").read_text()
    new = [pattern_scene(1, index) for index in range(500)]
    similarity = load(tmp_path / "model.safetensors").similarity([s.image for s in new], [s.caption for s in new])
    for way, best in (("i2t", similarity.i2t.argmax(1)), ("t2i", similarity.t2i.argmax(0))):
        seeds = [run["found"][f"retrieval/patterns_new_{way}_r1"] for name, run in record.items() if name in rows]
        assert len(seeds) > 1 and found(best) > min(seeds) / 2, (way, seeds)


def found(best: torch.Tensor) -> float:
    return (best == torch.arange(len(best))).float().mean().item()
