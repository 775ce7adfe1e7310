"""The demo's two trainings on the GPU, and their recall next to that of the models that ``make demo`` trained."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.gpu.finding import FAIL, PASS, SKIPPED, Finding, Place
from bench.gpu.trainings import run
from filip.study import load_study

DEMO = Path("results/demo")
MODELS = ("clip", "filip")
CARD = "demo_scenes_new"
# Points by which the recalls may differ: seeds of `make demo` do by as many (README), and rounding on another
# device acts as another seed does.
POINTS = {"clip": 5.0, "filip": 15.0}


def check(place: Place) -> Finding:
    missing = [model for name in MODELS if not (model := DEMO / "models" / f"{name}.safetensors").exists()]
    if place.tiny or missing:
        why = "a tiny check has no time for it" if place.tiny else f"no {missing[0]}: run `make demo` first"
        return Finding(SKIPPED, why)
    study = load_study(None, DEMO)
    rows: list[dict[str, Any]] = []
    for name in MODELS:
        run_dir = place.folder / name
        started = time.perf_counter()
        run(place, training(run_dir, name, study.training(name)), place.folder / f"{name}.log", 1)
        seconds = time.perf_counter() - started
        for where, model, device in (
            ("GPU", run_dir / "model.safetensors", str(place.device)),
            ("CPU, make demo", DEMO / "models" / f"{name}.safetensors", "cpu"),
        ):
            row = {"model": name, "trained on": where, **recalls(place, model, device)}
            rows.append(row | ({"seconds": seconds} if where == "GPU" else {}))
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    apart = {gpu["model"]: max(abs(gpu[way] - cpu[way]) for way in ("i2t R@1", "t2i R@1")) for gpu, cpu in pairs}
    said = "; ".join(
        f"{name}: R@1 within {points:.1f} points of the CPU's (at most {POINTS[name]:.0f})"
        for name, points in apart.items()
    )
    return Finding(PASS if all(points <= POINTS[name] for name, points in apart.items()) else FAIL, said, rows)


def training(run_dir: Path, name: str, trained: dict[str, Any]) -> list[str]:
    """Train as the study does, but for the device. ``trained``: the run's settings, of :meth:`Study.training`."""
    data = DEMO / "data" / "demo"
    settings = {
        "experiment": trained["experiment"], "run": name, "run_dir": run_dir, "out": run_dir / "model.safetensors",
        "data.sources": f"[{{shards: {data}/shards, captions: {data}/captions}}]",
    }  # fmt: skip
    return ["-m", "filip.train", *(f"{key}={value}" for key, value in settings.items()), *trained["overrides"]]


def recalls(place: Place, model: Path, device: str) -> dict[str, float]:
    """Return R@1 in percent, by the evaluation command."""
    out = place.folder / "retrieval.json"
    command = [sys.executable, "-m", "filip.eval", "protocols=[retrieval]", f"model={model}", f"device={device}",
               f"root={DEMO}/corpus/eval", f"data=[{CARD}]", f"out={out}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    found = json.loads(out.read_text())["benchmarks"][CARD]
    return {f"{way} R@1": 100 * found[way]["r1"] for way in ("i2t", "t2i")}
