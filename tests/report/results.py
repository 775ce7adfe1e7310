"""A small study and its results on disk, in the form that the commands of the pipeline write."""

import copy
import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from filip.cli.command import run_command
from filip.eval.outcomes import Outcomes, write_outcomes
from filip.report.results import Results
from filip.report.table import Cell, Table
from filip.report.tables import build_tables
from filip.report.tables.__main__ import Tables, load_published, main
from filip.study import load_study, resolve
from tests.support.shards import Sample, encoded, write_shard

EVAL = Path(__file__).parents[2] / "eval"

STUDY: dict[str, Any] = {
    "study": "small",
    "title": "A small study",
    "sources": ["demo"],
    "launch": {"launcher": "deepspeed", "ranks_per_node": 1},
    "train": {"experiment": "demo_from_scratch"},
    "runs": {
        "clip": {"label": "baseline (CLIP)", "overrides": ["model.interaction=pooled"]},
        "late": {"label": "w/ late interaction"},
        "filip": {"label": "FILIP (all) 100 % & more"},
    },
    "fine_tune": {
        "filip_ft": {"label": "FILIP, fine-tuned", "from": "filip", "source": "demo", "experiment": "demo_finetune"}
    },
    "efficiency": {
        "orig": {"label": "orig", "accuracy_of": "clip", "overrides": ["model.interaction=pooled"]},
        "late_64": {"label": "late-64", "overrides": ["model.embed_dim=64", "precision=bf16"]},
        "gone": {"label": "gone", "accuracy_of": "late"},
    },
    "eval": {"root": "x", "zero_shot": ["demo_food", "demo_animals"], "retrieval": ["demo_fluent"]},
    "tables": {
        "zero_shot": ["clip", "filip"],
        "retrieval": ["clip", "filip", "filip_ft"],
        "component_ablation": ["clip", "late", "filip"],
    },
}  # fmt: skip


def task(value: float, n: int = 200, classes: int = 100) -> dict[str, Any]:
    return {
        "metric": "top1", "value": value, "top1": value, "top5": min(1.0, 2 * value), "mean_per_class": value,
        "chance": 1 / classes, "n": n, "classes": classes, "ci95": [value - 0.02, value + 0.02], "prompts": 2,
        "note": None,
    }  # fmt: skip


def recalls(r1: float, images: int = 1590) -> dict[str, Any]:
    ranks = {"r1": r1, "r5": 3 * r1, "r10": 4 * r1}
    chance = {"r1": 1 / images, "r5": 5 / images, "r10": 10 / images}
    spread = {rank: [value - 0.005, value + 0.005] for rank, value in ranks.items()}
    two = {"i2t": ranks, "t2i": {rank: 0.9 * value for rank, value in ranks.items()}}
    return {
        "images": images, "captions": images, **two, "chance": {"i2t": chance, "t2i": chance},
        "ci95": {"i2t": spread, "t2i": spread}, "note": None,
    }  # fmt: skip


@functools.cache
def recorded_config() -> dict[str, Any]:
    """Return the config of the demo's experiment, as a training records it."""
    return asdict(resolve("experiment=demo_from_scratch"))


def training(run: str, folder: Path, seconds: float = 0.3, memory: float = 900.0, **config: Any) -> dict[str, Any]:
    """Return a training's result; config: its interaction, embed_dim, precision and token_keep_ratio, if others."""
    whole = copy.deepcopy(recorded_config())
    whole["model"]["image"]["image_size"] = 24
    whole["model"] |= {
        "interaction": config.pop("interaction", "token_wise"),
        "embed_dim": config.pop("embed_dim", 128),
    }
    settings = {
        "experiment": "demo_from_scratch",
        "precision": "fp32",
        "transport_dtype": "auto",
        "token_keep_ratio": 1.0,
    }
    return {
        "run": run,
        "config": {**whole, **settings, **config},
        "commit": "0123456789abcdef", "manifest_hashes": {}, "steps": 20, "epochs": 2, "world_size": 2,
        "global_batch": 128,
        "samples_per_second": 128 / seconds, "seconds_per_iteration": seconds, "peak_memory_mb": memory,
        "final": {"loss": 1.5}, "precision": "fp32", "started": "a", "finished": "b",
        "run_dir": str(folder / "runs" / f"{run}-00c0ffee"),
    }  # fmt: skip


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def hits(value: float, n: int) -> np.ndarray:
    """Draw hits on the first images: of two such runs the better one is right wherever the other is."""
    return np.arange(n) < round(value * n)


def outcomes(n: int, **shares: float) -> Outcomes:
    """Make outcomes of n queries whose measures have these means."""
    keys = [f"s{number:07d}" for number in range(n)]
    return Outcomes.of(keys, {measure: hits(share, n) for measure, share in shares.items()})


def write_tasks(folder: Path, run: str, tasks: dict[str, Any]) -> None:
    file = folder / "eval" / run / "zero_shot" / "all.json"
    write(file, {"run": run, "benchmarks": tasks})
    write_outcomes(file, {name: outcomes(result["n"], top1=result["value"]) for name, result in tasks.items()})


def write_results(folder: Path) -> Path:
    """Write everything of the study except the run ``late`` and the efficiency row ``gone``. Return the study file."""
    for run, accuracy, recall in (("clip", 0.10, 0.02), ("filip", 0.16, 0.05)):
        tasks = {"demo_food": task(accuracy), "demo_animals": task(accuracy / 2, 300, 130)}
        write_tasks(folder, run, tasks)
        file, found = folder / "eval" / run / "retrieval" / "all.json", recalls(recall)
        write(file, {"run": run, "benchmarks": {"demo_fluent": found}})
        ways = ("i2t", "t2i")
        write_outcomes(file, {f"demo_fluent.{way}": outcomes(found["images"], **found[way]) for way in ways})
        write(folder / "models" / f"{run}.json", training(run, folder))
        lines = [
            {"step": s, "loss/total": 5 - s / 10, "accuracy/i2t": s / 40, "optimizer/lr": s / 1e4}
            | {"time/processor_seconds": s}
            for s in range(0, 20, 2)
        ]
        log = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "event": "saved"}\n{"step": 4, "los'
        write(folder / "runs" / f"{run}-00c0ffee" / "log.jsonl", log)
    write(folder / "eval" / "filip_ft" / "retrieval" / "all.json", {"benchmarks": {"demo_fluent": recalls(0.08)}})
    write(folder / "efficiency" / "orig.json", training("orig", folder, interaction="pooled"))
    write(
        folder / "efficiency" / "late_64.json",
        training("late_64", folder, 0.45, 1350.0, embed_dim=64, precision="bf16"),
    )
    write(folder / "funnel.json", {"stages": FUNNEL})
    for stage, seconds in (("train/clip", [100.5]), ("train/filip", [150.0, 151.0]), ("url_list/demo", [2.5])):
        rows = "".join(f"{s}\t0:00:01\t12.5\n" for s in seconds)
        write(folder / "benchmarks" / f"{stage}.tsv", f"s\th:m:s\tmax_rss\n{rows}")
    write(folder / "corpus" / "attribution.json", ATTRIBUTION)
    write_images(folder / "data" / "demo")
    write(folder / "study.json", STUDY)
    return folder / "study.json"


FUNNEL = [
    {"stage": "text_rules", "source": "demo", "unit": "pairs", "in": 100, "out": 90,
     "dropped": {"not_english": 7, "repeated": 3}},
    {"stage": "download", "source": "demo", "unit": "pairs", "in": 90, "out": 90, "dropped": {}},
    {"stage": "translate", "source": "demo", "unit": "candidates", "in": 90, "out": 20, "dropped": {"identical": 70}},
]  # fmt: skip
ATTRIBUTION = {
    "noto": {"title": "Noto <Emoji>", "author": "Google Inc", "homepage": "https://example.org/noto",
             "license": "Apache-2.0", "license_url": "https://example.org/licence", "role": "training", "images": 2102,
             "package": "noto@1", "changes": ""},
}  # fmt: skip


def write_images(folder: Path) -> None:
    """Write four images as img2dataset does, with a caption side-car."""
    samples = []
    for i in range(4):
        image = encoded(Image.new("RGB", (40, 30), (60 * i, 90, 120)), "JPEG")
        captions = [f"text {i}", f"back-translated {i}"] if i else ["text 0"]
        samples.append(Sample(f"{i:09d}", image, captions, suffix="jpg"))
    write_shard(folder, 0, samples)


def add_seeds(folder: Path) -> None:
    """Write results of `make … SEEDS=3`: two more seeds of filip on disk, and the number in study.json only."""
    for run, value in (("filip_s1", 0.20), ("filip_s2", 0.24)):
        tasks = {"demo_food": task(value), "demo_animals": task(value)}
        write(folder / "eval" / run / "zero_shot" / "all.json", {"benchmarks": tasks})
    write(folder / "study.json", {**STUDY, "seeds": 3})


def changed(folder: Path, name: str, **changes: Any) -> Path:
    """Write the file of a study that is STUDY with ``changes`` of its top-level keys."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return file


def tables_of(folder: Path, study: Path | None = None) -> dict[str, Table]:
    """Return the tables of the study's results, built in this process."""
    published = load_published(EVAL / "paper_tables.yaml")
    read = load_study(study or folder / "study.json", folder)
    return build_tables(read, Results(folder), published, resamples=1000)


def cells(table: Table, label: str) -> dict[str, Cell]:
    """Return the cells of a row by column, those that it lacks not reported."""
    row = next(row for row in table.rows if row.label == label)
    return row.cells


def write_tables(folder: Path, *arguments: str) -> None:
    run_command(
        main, Tables, argv=[f"results={folder}", f"published={EVAL / 'paper_tables.yaml'}", "resamples=500", *arguments]
    )
