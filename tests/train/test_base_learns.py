"""The paper's quarter, which base.yaml keeps, learns scaled down: 13 of 49 patches, 8 of 31 words."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from pyarrow import csv

from filip import load
from filip.cli.command import compose_config
from filip.study import load_study, resolve
from filip.text.tokenizer import token_counts
from filip_demo.patterns import Patterns, main, pattern_scene
from late_interaction.token_selection import kept_count
from tests.support.shards import Sample, encoded, write_shard
from tests.support.training import records, run_many

ROOT = Path(__file__).parents[2]


def test_the_pictures_have_the_counts_of_the_paper(tmp_path: Path) -> None:
    main(compose_config(Patterns, [f"out={tmp_path}", "scenes=2", "test_scenes=1"]))
    for row in csv.read_csv(tmp_path / "captions.csv").to_pylist():
        assert Image.open(tmp_path / row["path"]).size == (56, 56)
        patches, words = (56 // 8) ** 2, token_counts([row["caption"]])[0]
        assert (kept_count(patches, 0.25, 1), kept_count(words, 0.25, 1), words) == (13, 8, 31)


@pytest.mark.slow
def test_the_quarter_of_base_yaml_learns_and_a_rate_too_high_is_named(tmp_path: Path) -> None:
    """The row's warm-up, a third of its steps. Of 500 pictures chance finds ten once in ten million trainings."""
    study = load_study(ROOT / "workflow/config/quarter.yaml")
    base, row, training = resolve("experiment=base"), study.resolved("paper"), study.training("paper")
    for name in ("token_keep_ratio", "token_keep_schedule", "token_score", "token_keep_minimum", "soft_targets"):
        assert getattr(row, name) == getattr(base, name), name
    record = json.loads((ROOT / "records/quarter.json").read_text())["runs"]["paper"]["config"]["optimizer"]
    assert (record["name"], record["temperature_lr_factor"]) == ("lamb", base.optimizer.temperature_lr_factor)
    for shard in range(4):
        scenes = (pattern_scene(0, index) for index in range(600 * shard, 600 * (shard + 1)))
        samples = [Sample(f"{scene.index:07d}", encoded(scene.image), [scene.caption], scene.index) for scene in scenes]
        write_shard(tmp_path, shard, samples)
    sources = f"[{{shards: {tmp_path}/shards, captions: {tmp_path}/captions}}]"
    settings = [f"experiment={training['experiment']}", *training["overrides"], f"data.sources={sources}"]
    runs = {
        "well": [f"optimizer.base_lr={record['base_lr']}", "max_steps=401", "optimizer.warmup_steps=400"],
        "ill": ["optimizer.base_lr=5.06e-2", "max_steps=130", "optimizer.warmup_steps=100"],
    }
    commands = [
        ["-m", "filip.train", *settings, *own, f"run_dir={tmp_path}/{name}", f"out={tmp_path}/{name}.safetensors"]
        for name, own in runs.items()
    ]
    assert run_many(1, commands, tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()
    alerts = {name: [r["text"] for r in records(tmp_path / name) if r.get("event") == "watchdog"] for name in runs}
    assert not any("embeddings collapsed" in text for text in alerts["well"])
    assert any("embeddings collapsed" in text and "lower optimizer.base_lr" in text for text in alerts["ill"]), alerts
    new = [pattern_scene(1, index) for index in range(500)]
    similarity = load(tmp_path / "well.safetensors").similarity([s.image for s in new], [s.caption for s in new])
    ways = similarity.i2t.argmax(1), similarity.t2i.argmax(0)
    assert min(found(best) for best in ways) > 10, [found(best) for best in ways]


def found(best: torch.Tensor) -> int:
    return int((best == torch.arange(len(best))).sum())
