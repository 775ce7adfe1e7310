"""The trainings of base, large and ablation are the paper's, setting by setting."""

from pathlib import Path

import pytest
import yaml

from filip.study import Study, paper

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("section", paper.TRAININGS)
def test_every_setting_is_the_papers_or_is_stated_with_a_reason(section: str) -> None:
    rows = paper.compare()[section]
    assert [row.setting for row in rows if row.state == "DIFFERENT"] == []
    assert [row.setting for row in rows if row.state and not row.notes] == []
    assert [row.setting for row in rows if row.state == "ours"] == (["image_size"] if section == "fine-tuning" else [])


def test_a_training_that_leaves_the_paper_shows_a_difference() -> None:
    config = yaml.safe_load((ROOT / "workflow/config/base.yaml").read_text())
    config["train"] = {"experiment": "base_ours", "overrides": ["optimizer.base_lr=3e-3"]}
    theirs, ours = (
        {**paper.resolved_settings(study, "filip_base")}
        for study in (Study(config | {"train": {"experiment": "base"}}), Study(config))
    )
    different = {name for name in ours if ours[name] != theirs[name]}
    assert different == {
        "optimizer.base_lr",
        *("token_keep_schedule", "token_keep_minimum", "token_score", "soft_targets"),
        "optimizer.temperature_lr_factor",
    }
