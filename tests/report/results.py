"""A small study and its results on disk, in the form that the commands of the pipeline write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from filip.report.build import build_tables, load_published
from filip.report.study import Results, load_study
from tests.support.shards import Sample, encoded, write_shard

EVAL = Path(__file__).parents[2] / "eval"

STUDY: dict[str, Any] = {
    "study": "small",
    "title": "A small study",
    "sources": ["demo"],
    "runs": {
        "clip": {"label": "baseline (CLIP)"},
        "late": {"label": "w/ late interaction"},
        "filip": {"label": "FILIP (all) 100 % & more"},
    },
    "fine_tune": {"filip_ft": {"label": "FILIP, fine-tuned", "from": "filip", "source": "demo"}},
    "efficiency": {
        "orig": {"label": "orig", "loss": "global", "embed_dim": 512, "precision": "fp32", "token_percent": None,
                 "accuracy_of": "clip"},
        "late_64": {"label": "late-64", "loss": "late interaction", "embed_dim": 64, "precision": "bf16",
                    "token_percent": 100, "accuracy_of": None},
        "gone": {"label": "gone", "loss": "late interaction", "embed_dim": 64, "precision": "fp16",
                 "token_percent": 25, "accuracy_of": "late"},
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
        "confused": [["cat", "dog", 3], ["a very long name of a class of things", "owl", 1]], "note": None,
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


def training(run: str, folder: Path, seconds: float = 0.3, memory: float = 900.0) -> dict[str, Any]:
    return {
        "run": run, "config": {"experiment": "demo", "model": {"image": {"image_size": 24}}},
        "commit": "0123456789abcdef", "manifest_hashes": {}, "steps": 20, "epochs": 2, "world_size": 2,
        "global_batch": 128,
        "samples_per_second": 128 / seconds, "seconds_per_iteration": seconds, "peak_memory_mb": memory,
        "final": {"loss": 1.5}, "precision": "fp32", "started": "a", "finished": "b",
        "run_dir": str(folder / "runs" / f"{run}-00c0ffee"),
    }  # fmt: skip


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_results(folder: Path) -> Path:
    """Everything of the study except the run ``late`` and the efficiency row ``gone``. Returns the study file."""
    for run, accuracy, recall in (("clip", 0.10, 0.02), ("filip", 0.16, 0.05)):
        tasks = {"demo_food": task(accuracy), "demo_animals": task(accuracy / 2, 300, 130)}
        write(folder / "eval" / run / "zero_shot.json", {"run": run, "tasks": tasks})
        write(
            folder / "eval" / run / "retrieval.json",
            {"run": run, "benchmarks": {"demo_fluent": recalls(recall)}},
        )
        write(folder / "models" / f"{run}.json", training(run, folder))
        lines = [
            {"step": s, "loss/total": 5 - s / 10, "accuracy/i2t": s / 40, "optimizer/lr": s / 1e4}
            for s in range(0, 20, 2)
        ]
        log = (
            "".join(json.dumps(line) + "\n" for line in lines)
            + '{"step": 3, "event": "saved"}\n{"step": 4, "los'
        )
        write(folder / "runs" / f"{run}-00c0ffee" / "log.jsonl", log)
    write(folder / "eval" / "filip_ft" / "retrieval.json", {"benchmarks": {"demo_fluent": recalls(0.08)}})
    write(folder / "efficiency" / "orig.json", training("orig", folder))
    write(folder / "efficiency" / "late_64.json", training("late_64", folder, 0.45, 1350.0))
    write(folder / "funnel.json", {"stages": FUNNEL})
    for stage, seconds in (
        ("train/clip", [100.5]),
        ("train/filip", [150.0, 151.0]),
        ("url_list/demo", [2.5]),
    ):
        rows = "".join(f"{s}\t0:00:01\t12.5\n" for s in seconds)
        write(folder / "benchmarks" / f"{stage}.tsv", f"s\th:m:s\tmax_rss\n{rows}")
    write(folder / "corpus" / "attribution.json", ATTRIBUTION)
    write_images(folder / "data" / "demo")
    study = folder / "study.json"
    write(study, yaml.safe_dump(STUDY, sort_keys=False))
    return study


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
    """Four images as img2dataset writes them, with a caption side-car."""
    samples = []
    for i in range(4):
        image = encoded(Image.new("RGB", (40, 30), (60 * i, 90, 120)), "JPEG")
        captions = [f"text {i}", f"back-translated {i}"] if i else ["text 0"]
        samples.append(Sample(f"{i:09d}", image, captions, suffix="jpg"))
    write_shard(folder, 0, samples)


def tables_of(folder: Path, study: Path | None = None) -> dict:
    return build_tables(
        load_study(study or folder / "study.json"),
        Results(folder),
        load_published(EVAL / "published.yaml"),
        EVAL,
    )
