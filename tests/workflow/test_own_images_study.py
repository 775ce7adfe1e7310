"""A study of one's own images through Snakemake, from a folder to tables."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.ports import free_port
from tests.support.snakemake_runs import run_snakemake
from tests.support.squares import square, write_test_set

PHOTOS = 64
PHOTOS_FOLDER = "my photos, it's 'mine' = $HOME; 100%"


def write_photos(folder: Path) -> None:
    """Write squares that a text next to each describes, and one file that is not an image."""
    folder.mkdir()
    for n in range(PHOTOS):
        (folder / f"photo #{n}.png").write_bytes(square(n)[0])
        (folder / f"photo #{n}.txt").write_text(square(n)[1])
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "broken.txt").write_text("a man on a horse")


@pytest.mark.slow
def test_a_folder_of_one_s_own_images_becomes_tables(clone: Path, tmp_path: Path) -> None:
    """The study own_images is copied for a folder of one's own, with one training of a few steps."""
    write_photos(tmp_path / PHOTOS_FOLDER)
    write_test_set(tmp_path / "eval/photos_test", range(PHOTOS, PHOTOS + 8))
    card = yaml.safe_load((clone / "data/own_images.yaml").read_text())
    del card["built_by"], card["group_column"]
    own = {**card, "name": "photos", "images": str(tmp_path / PHOTOS_FOLDER), "back_translation": None}
    own["image_rules"] = {"min_side": 32}
    (clone / "data/photos.yaml").write_text(yaml.safe_dump(own))
    test = yaml.safe_load((clone / "eval/demo_test.yaml").read_text())
    test |= {"name": "photos_test", "fine_tuned_on": ["photos"], "title": "Photos"}
    test["layouts"] = {"webdataset": {"path": "photos_test", "split": "test"}}
    (clone / "eval/photos_test.yaml").write_text(yaml.safe_dump(test))

    config = yaml.safe_load((clone / "workflow/config/own_images.yaml").read_text())
    config |= {"study": "photos", "sources": ["photos"], "runs": {"filip": config["runs"]["filip"]}}
    config["eval"] = {"root": str(tmp_path / "eval"), "zero_shot": [], "retrieval": ["photos_test"]}
    config["tables"] = {"retrieval": ["filip"]}
    steps = ["global_batch=32", "max_steps=6", "optimizer.warmup_steps=2"]
    config["train"]["overrides"] = [*config["train"]["overrides"], *steps]
    config["launch"]["master_port"] = free_port()
    config["select"] = {
        "keep": ["similarity IS NULL", "test_distance >= 0"]
    }  # squares of one colour are all alike
    (tmp_path / "photos.yaml").write_text(yaml.safe_dump(config))
    done = run_snakemake("--show-failed-logs", cwd=clone, config=tmp_path / "photos.yaml", timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]

    results = clone / "results/photos"
    manifest = json.loads((results / "data/photos/manifest.json").read_text())
    assert manifest["images"]["count"] == manifest["captions"]["count"] == PHOTOS
    stages = {stage["stage"]: stage for stage in json.loads((results / "funnel.json").read_text())["stages"]}
    assert list(stages) == ["text_rules", "ingest", "translate", "select"]
    assert (stages["select"]["in"], stages["select"]["out"]) == (PHOTOS, PHOTOS)
    scores = pq.read_table(results / "selected/photos/captions/00000.parquet")
    assert len(scores) == PHOTOS and any(
        str(test).startswith("photos_test/") for test in scores["test"].to_pylist()
    )
    assert stages["ingest"]["dropped"] == {"not_an_image": 1}
    (row,) = json.loads((results / "tables/tables.json").read_text())["tables"]["retrieval"]["rows"]
    assert row["label"] == "FILIP"
    assert "Photos" in (results / "tables/retrieval.html").read_text()
    assert (results / "report.html").is_file()
