"""The DAG through Snakemake itself: dry runs of every study and a complete run on a reduced corpus."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.support.ports import free_port
from tests.support.squares import square, write_test_set
from workflow.study import ROOT

PHOTOS = 64
PHOTOS_FOLDER = "my photos, it's 'mine' = $HOME; 100%"

STUDIES = sorted(path.stem for path in (ROOT / "workflow" / "config").glob("*.yaml"))


def snakemake(
    *arguments: str, cwd: Path, config: Path, timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    command, environment = snakemake_command(*arguments, cwd=cwd, config=config)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


def snakemake_command(*arguments: str, cwd: Path, config: Path) -> tuple[list[str], dict[str, str]]:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "PYTHONPATH": str(cwd),
    }
    profile = cwd / "workflow/profiles/local"
    command = [sys.executable, "-m", "snakemake", "--configfile", str(config), "--profile", str(profile)]
    return [*command, "--cores", "2", *arguments], environment


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as a fresh checkout has it: no results, no caches, so no data at all."""
    target = tmp_path_factory.mktemp("clone") / "filip"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "results", ".snakemake", ".*cache", "__pycache__", "*.egg-info"
    )
    shutil.copytree(ROOT, target, ignore=ignored)
    return target


def job_counts(printed: str) -> dict[str, int]:
    """How many jobs of each rule a dry run counts."""
    lines = [line.split() for line in printed.splitlines()]
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_dry_run_prints_the_complete_dag_without_data(clone: Path, study: str) -> None:
    done = snakemake("-n", cwd=clone, config=clone / f"workflow/config/{study}.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    config = yaml.safe_load((clone / f"workflow/config/{study}.yaml").read_text())
    printed = done.stdout + done.stderr
    for run in config["runs"]:
        assert f"models/{run}.safetensors" in printed
    counts = job_counts(printed)
    built = {"demo", "own_images"} & set(config["sources"])
    tuned = {tune["source"] for tune in config.get("fine_tune", {}).values()}
    assert counts["pretrain"] == len(config["runs"])
    assert counts.get("fine_tune", 0) == len(config.get("fine_tune", {}))
    assert counts.get("efficiency", 0) == bool(config.get("efficiency"))
    sources = {*config["sources"], *tuned}
    assert counts.get("ingest", 0) == len(sources & {"own_images"})
    assert counts.get("download", 0) == counts.get("url_list", 0) == len(sources - {"own_images"})
    assert counts["translate"] == len(sources)
    assert counts.get("demo_corpus", 0) == len(built)
    assert counts["summary"] == 1
    assert counts.get("explorer", 0) == ("explorer" in config)
    launch = config["launch"]
    if launch["launcher"] != "srun" and launch.get("accelerator") != "cpu":
        assert f"gpu={launch['ranks_per_node']}" in printed and "gpu=1" in printed
    else:
        assert ", gpu=" not in printed  # tasks_per_gpu= is of srun
    rows, cards = config["tables"].get("zero_shot"), config["eval"]["zero_shot"]
    if rows and not config.get("seeds"):  # one job a run, or one a run and card with what puts them together
        per_card = config["eval"].get("per_card", False)
        assert counts["zero_shot"] == len(rows) * (len(cards) if per_card else 1)
        assert ("merge" in counts) == per_card == ("their cells will be empty" in printed)


@pytest.mark.slow
def test_34_000_shards_of_each_source_are_few_jobs(clone: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((clone / "workflow/config/base.yaml").read_text())
    config["data_dir"] = str(tmp_path / "datasets")
    sources = {*config["sources"], *(tune["source"] for tune in config["fine_tune"].values())}
    for source in sources:
        folder = tmp_path / "datasets" / source
        (folder / "funnel").mkdir(parents=True)
        fragment = json.dumps({"notes": {"shards": 34_000}})
        for name in (
            "list.parquet",
            "funnel/prepare.json",
            "kept.parquet",
            "funnel/text_rules.json",
            "funnel/download.json",
        ):
            (folder / name).write_text(fragment)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(config))
    done = snakemake("-n", "--rerun-triggers", "mtime", cwd=clone, config=tmp_path / "base.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    counts = job_counts(done.stdout + done.stderr)
    assert counts["translate_part"] == 256 * len(sources) and counts["translate_plan"] == len(sources)
    assert "download" not in counts and counts["total"] < 300 * len(sources)


@pytest.mark.slow
def test_a_config_that_breaks_the_schema_stops_with_one_sentence(clone: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((clone / "workflow/config/demo.yaml").read_text())
    config["demo"]["port"] = "eighty"
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(config))
    done = snakemake("-n", cwd=clone, config=broken)
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert "demo.port" in output and "eighty" in output
    assert "Traceback" not in output and "Building DAG" not in output


def write_photos(folder: Path) -> None:
    """Squares that a text beside each describes, and one that is no image."""
    folder.mkdir()
    for n in range(PHOTOS):
        (folder / f"photo #{n}.png").write_bytes(square(n)[0])
        (folder / f"photo #{n}.txt").write_text(square(n)[1])
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "broken.txt").write_text("a man on a horse")


@pytest.mark.slow
def test_a_folder_of_one_s_own_images_becomes_tables(clone: Path, tmp_path: Path) -> None:
    """The study own_images copied for a folder of one's own, with one training of a few steps."""
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
    steps = ["global_batch=32", "max_steps=6", "warmup_timing=1", "optimizer.warmup_steps=2"]
    config["train"]["overrides"] = [*config["train"]["overrides"], *steps]
    config["launch"]["master_port"] = free_port()
    (tmp_path / "photos.yaml").write_text(yaml.safe_dump(config))
    done = snakemake("--show-failed-logs", cwd=clone, config=tmp_path / "photos.yaml", timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]

    results = clone / "results/photos"
    manifest = json.loads((results / "data/photos/manifest.json").read_text())
    assert manifest["images"]["count"] == manifest["captions"]["count"] == PHOTOS
    stages = {stage["stage"]: stage for stage in json.loads((results / "funnel.json").read_text())["stages"]}
    assert list(stages) == ["text_rules", "ingest", "translate"]
    assert stages["ingest"]["dropped"] == {"not_an_image": 1}
    (row,) = json.loads((results / "tables/tables.json").read_text())["tables"]["retrieval"]["rows"]
    assert row["label"] == "FILIP"
    assert "Photos" in (results / "tables/retrieval.html").read_text()
    assert (results / "report.html").is_file()


def reduced(config: dict) -> dict:
    """The demo with few concepts, a tiny model and a handful of steps; every stage and every table."""
    config["study"] = "reduced"
    config["demo"] = {"port": free_port(), "limit": 48, "cache": str(ROOT / ".cache" / "demo")}
    config["demo"] |= {"scenes": 200, "test_scenes": 40}
    few_steps = ["global_batch=32", "max_steps=6", "log_every=2"]
    few_steps += ["warmup_timing=1", "optimizer.warmup_steps=2"]
    config["train"]["overrides"] = few_steps
    config["launch"]["master_port"] = free_port()
    config["runs"] = {name: config["runs"][name] for name in ("clip", "filip")}
    config["fine_tune"] = {"filip_ft": config["fine_tune"]["filip_ft"]}
    config["efficiency_train"] |= {
        "gathered": 128,
        "overrides": [],
    }  # not few_steps: it has batches of its own
    config["efficiency"] = {name: config["efficiency"][name] for name in ("late_64_bf16_25",)}
    config["tables"] = {
        "zero_shot": ["clip", "filip"],
        "retrieval": ["filip", "filip_ft"],
        "component_ablation": ["clip", "filip"],
        "selection": ["filip"],
        "scene_pointing": ["filip"],
        "alignment": ["filip"],
    }
    config["eval"]["root"] = "results/reduced/corpus/eval"
    return config


@pytest.fixture(scope="module")
def finished(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The reduced study run through once: npm corpus, HTTP server, img2dataset, one and two ranks, tables."""
    config = tmp_path_factory.mktemp("study") / "reduced.yaml"
    config.write_text(
        yaml.safe_dump(reduced(yaml.safe_load((ROOT / "workflow/config/demo.yaml").read_text())))
    )
    done = snakemake("--show-failed-logs", cwd=clone, config=config, timeout=1500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return clone, config


@pytest.fixture(scope="module")
def summary(finished: tuple[Path, Path]) -> dict:
    return json.loads((finished[0] / "results/reduced/summary.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(1600)  # the fixture runs the study; about three minutes on two idle cores
def test_the_summary_of_a_whole_run_has_every_stage_and_training(summary: dict) -> None:
    assert {"stages", "funnel", "tables", "runs"} <= summary.keys()
    assert all(seconds >= 0 for seconds in summary["stages"].values())
    assert {"demo_corpus", "download/demo", "translate/demo", "train/filip"} <= summary["stages"].keys()
    for run in ("clip", "filip", "filip_ft"):
        assert summary["runs"][run]["samples_per_second"] > 0


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_the_funnel_of_a_whole_run_adds_up(finished: tuple[Path, Path], summary: dict) -> None:
    corpus = json.loads((finished[0] / "results/reduced/corpus/corpus.json").read_text())
    stages = {(part["stage"]): part for part in summary["funnel"]}
    for part in summary["funnel"]:
        assert part["in"] == part["out"] + sum(part["dropped"].values())
    assert list(stages) == ["prepare", "text_rules", "download", "translate"]
    assert stages["text_rules"]["out"] == stages["download"]["in"]
    assert sum(corpus["planted"].values()) <= sum(
        sum(stages[stage]["dropped"].values()) for stage in ("text_rules", "download")
    )


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_a_whole_run_writes_the_tables_with_what_it_trained(
    finished: tuple[Path, Path], summary: dict
) -> None:
    for table in (
        "zero_shot",
        "retrieval",
        "selection",
        "scene_pointing",
        "component_ablation",
        "efficiency_ablation",
    ):
        assert (finished[0] / f"results/reduced/tables/{table}.md").is_file()
        assert summary["tables"][table]
    row = summary["tables"]["efficiency_ablation"]["rows"][0]["cells"]
    facts = [row[key]["value"] for key in ("interaction", "embed_dim", "precision", "token_keep_ratio")]
    assert facts == ["token-wise", 64, "fp32", 0.25]


@pytest.mark.slow
def test_the_report_embeds_tables_figures_and_pictures(finished: tuple[Path, Path]) -> None:
    clone, config = finished
    assert '<p class="verdict">' in (clone / "results/reduced/report.html").read_text()
    done = snakemake("--report", "results/reduced/report-snakemake.html", cwd=clone, config=config)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert 'href="explore.html"' in (clone / "results/reduced/report.html").read_text()
    assert '"label":"FILIP"' in (clone / "results/reduced/explore.html").read_text()
    page = (clone / "results/reduced/report-snakemake.html").read_text()
    for name in ("zero_shot.html", "component_ablation.html", "funnel.svg", "alignment.png", "report.html"):
        assert name in page


@pytest.mark.slow
def test_a_second_run_does_nothing_and_prompts_rerun_only_what_depends_on_them(
    finished: tuple[Path, Path],
) -> None:
    clone, config = finished
    again = snakemake(cwd=clone, config=config)
    assert "Nothing to be done" in again.stdout + again.stderr
    (clone / "eval/prompts.yaml").touch()
    planned = snakemake("-n", "--quiet", "rules", cwd=clone, config=config)
    printed = planned.stdout + planned.stderr
    for affected in ("zero_shot", "retrieval", "alignment", "tables"):
        assert affected in printed
    for unaffected in ("pretrain", "fine_tune", "download", "translate", "efficiency", "linear_probe"):
        assert unaffected not in printed


def ranks_of(process: subprocess.Popen, run: str) -> list[psutil.Process]:
    """The training processes below Snakemake, not their launchers."""
    below = psutil.Process(process.pid).children(recursive=True)
    return [p for p in below if "RANK" in p.environ() and f"run={run}" in p.cmdline()]


@pytest.mark.slow
def test_a_pre_empted_or_killed_training_resumes(finished: tuple[Path, Path], tmp_path: Path) -> None:
    clone, config = finished
    study = yaml.safe_load(config.read_text())
    longer = ["max_steps=120", "log_every=5", "checkpoint.every_steps=20"]
    study["runs"]["long"] = {"label": "long", "overrides": [*study["runs"]["filip"]["overrides"], *longer]}
    study["runs"]["long"]["launch"] = {"ranks_per_node": 2, "side_by_side": 1}
    config = tmp_path / "longer.yaml"
    config.write_text(yaml.safe_dump(study))
    target = clone / "results/reduced/models/long.json"
    for number, steps in ((signal.SIGUSR1, 10), (signal.SIGKILL, 45)):
        command, environment = snakemake_command(str(target.relative_to(clone)), cwd=clone, config=config)
        running = subprocess.Popen(command, cwd=clone, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while last_step(clone) < steps and time.monotonic() < deadline and running.poll() is None:
            time.sleep(0.1)
        for rank in ranks_of(running, "long"):
            rank.send_signal(number)
        assert running.wait(120) != 0 and not target.exists()
    done = snakemake(str(target.relative_to(clone)), cwd=clone, config=config)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert json.loads(target.read_text())["steps"] == 120
    (log,) = clone.glob("results/reduced/runs/long-*/log.jsonl")
    text = log.read_text()
    assert "stopped by a signal after step" in text and text.count("resumed from") == 2, text


def last_step(clone: Path) -> int:
    """Of the run `long`, as far as its log tells."""
    lines = [
        s for log in clone.glob("results/reduced/runs/long-*/log.jsonl") for s in log.read_text().splitlines()
    ]
    return json.loads(lines[-1])["step"] if lines else 0
