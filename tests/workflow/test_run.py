"""A study of one's own images, from a folder to tables.

If it is interrupted, it ends at once and as a whole, and the same command continues it to the same tables.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.ports import free_port
from tests.support.processes import Process, run_python
from tests.support.snakemake_runs import write_clone
from tests.support.squares import square, write_test_set
from workflow import one_run

PHOTOS = 48
PHOTOS_FOLDER = "my photos, it's 'mine' = $HOME; 100%"
TABLES = "results/photos/tables/tables.json"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a checkout without results, with a study of a few photos and a few steps: photos.yaml.

    A file among the photos is not an image.
    """
    folder = tmp_path_factory.mktemp("clone")
    target, images = write_clone(folder / "filip"), folder / PHOTOS_FOLDER
    images.mkdir()
    for n in range(PHOTOS):
        (images / f"photo #{n}.png").write_bytes(square(n)[0])
        (images / f"photo #{n}.txt").write_text(square(n)[1])
    (images / "broken.jpg").write_bytes(b"no image")
    (images / "broken.txt").write_text("a man on a horse")
    write_test_set(folder / "eval/photos_test", range(PHOTOS, PHOTOS + 8))
    card = yaml.safe_load((target / "data/own_images.yaml").read_text())
    del card["built_by"], card["group_column"]
    card |= {"name": "photos", "images": str(images), "back_translation": None, "image_rules": {"min_side": 32}}
    (target / "data/photos.yaml").write_text(yaml.safe_dump(card))
    test = yaml.safe_load((target / "eval/demo_test.yaml").read_text())
    test |= {"name": "photos_test", "fine_tuned_on": ["photos"], "title": "Photos"}
    test["layouts"] = {"webdataset": {"path": "photos_test", "split": "test"}}
    (target / "eval/photos_test.yaml").write_text(yaml.safe_dump(test))
    config = yaml.safe_load((target / "workflow/config/own_images.yaml").read_text())
    config |= {"study": "photos", "sources": ["photos"], "runs": {"filip": config["runs"]["filip"]}}
    config["data_dir"] = "photos_data"  # which stays when a study's results are removed
    config["eval"] = {"root": str(folder / "eval"), "zero_shot": [], "retrieval": ["photos_test"]}
    config["tables"] = {"retrieval": ["filip"]}
    steps = ["model=tiny", "global_batch=32", "max_steps=80", "log_every=2", "optimizer.warmup_steps=2"]
    config["train"]["overrides"] = [*config["train"]["overrides"], *steps]
    config["launch"] |= {"master_port": free_port(), "ranks_per_node": 1}
    # squares of one colour are all alike
    config["select"] = {"keep": ["similarity IS NULL", "test_distance >= 0"]}
    (target / "photos.yaml").write_text(yaml.safe_dump(config))
    return target


def call(clone: Path, *arguments: str, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONPATH": str(clone)}
    return run_python("-m", *arguments, variables=environment, cwd=clone, timeout=timeout)


@pytest.fixture(scope="module")
def reference(clone: Path) -> Path:
    """Run the study, uninterrupted, and return a copy of its tables."""
    done = call(clone, "workflow.run", "photos.yaml", "--cores", "1", timeout=1700)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return Path(shutil.copy(clone / TABLES, clone.parent / "alone.json"))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the fixture runs the study, in half a minute of two idle cores
def test_a_folder_of_one_s_own_images_becomes_tables(clone: Path, reference: Path) -> None:
    results = clone / "results/photos"
    manifest = json.loads((results / "selected/photos/manifest.json").read_text())
    assert manifest["images"]["count"] == manifest["captions"]["count"] == PHOTOS
    stages = {stage["stage"]: stage for stage in json.loads((results / "funnel.json").read_text())["stages"]}
    assert list(stages) == ["text_rules", "ingest", "translate", "select"]
    assert (stages["select"]["in"], stages["select"]["out"]) == (PHOTOS, PHOTOS)
    scores = pq.read_table(results / "selected/photos/captions/00000.parquet")
    assert len(scores) == PHOTOS
    assert any(str(test).startswith("photos_test/") for test in scores["test"].to_pylist())
    assert stages["ingest"]["dropped"] == {"not_an_image": 1}
    (row,) = json.loads(reference.read_text())["tables"]["retrieval"]["rows"]
    assert row["label"] == "FILIP"
    assert "Photos" in (results / "tables/retrieval.html").read_text()
    assert (results / "report.html").is_file()


def at_work(results: Path, module: str) -> bool:
    """Return whether a command of a module runs; of a training, whether it takes steps."""
    logs = [log.read_text(errors="replace") for log in results.glob("logs/train/*.log")]
    with suppress(psutil.Error):
        running = any(module in one.cmdline() for one in one_run.processes(results))
        return running and (module != "filip.train" or any("training:" in log for log in logs))
    return False


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two minutes on two idle cores
def test_an_interrupted_study_continues_to_the_same_tables(clone: Path, reference: Path) -> None:
    """Ctrl-C in the training, then the end of Snakemake in the evaluation: each time nothing is left at work."""
    results = clone / "results/photos"
    shutil.rmtree(results)
    # one core: two threads of a rank would wait for each other while other tests have the cores
    arguments = ["-m", "workflow.run", "photos.yaml", TABLES, "--cores", "1"]
    variables = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONPATH": str(clone)}
    for module in ("filip.train", "filip.eval"):
        log = clone.parent / f"{module}.log"
        running = Process(arguments, variables, log, cwd=clone)
        while not at_work(results, module):
            assert running.poll() is None, log.read_text()[-4000:]
            time.sleep(0.1)
        if module == "filip.train":
            running.send_signal(signal.SIGINT)
        else:
            children = psutil.Process(running.pid).children()
            next(child for child in children if "snakemake" in child.cmdline()).kill()
        running.wait(120)
        printed = log.read_text()
        assert not one_run.processes(results), printed[-4000:]
        assert "the same command continues" in printed and "Traceback" not in printed
    done = call(clone, *arguments[1:], timeout=1700)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert cells(clone / TABLES) == cells(reference)


def cells(file: Path) -> dict[tuple[str, ...], dict]:
    """Return the cells of all tables, by table, row and column."""
    tables = json.loads(file.read_text())["tables"].items()
    return {(t, r["label"], c): cell for t, table in tables for r in table["rows"] for c, cell in r["cells"].items()}


@pytest.mark.slow
def test_a_study_that_is_not_there_or_wrong_is_one_sentence(clone: Path) -> None:
    absent = call(clone, "workflow.run", "nosuch")
    assert absent.returncode == 2 and absent.stdout == ""
    (line,) = absent.stderr.splitlines()
    assert line.startswith("error: there is no study 'nosuch'") and "demo_ablation" in line
    config = yaml.safe_load((clone / "photos.yaml").read_text())
    (clone / "wrong.yaml").write_text(yaml.safe_dump(config | {"sources": ["nowhere"]}))
    wrong = call(clone, "workflow.run", "wrong.yaml", "--cores", "2")
    assert wrong.returncode == 2 and "nowhere" in wrong.stderr
    assert wrong.stderr.count("error:") == 1 and "Snakefile" not in wrong.stderr
    assert "Traceback" not in wrong.stderr and "WorkflowError" not in wrong.stderr
