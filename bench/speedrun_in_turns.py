"""Train rows of the speedrun's board in turns, each by the program of its commit, and compare each with the one before.

    OMP_NUM_THREADS=1 python -m bench.speedrun_in_turns 0,1,2 31da7d9e:filip:240 90117b4b:filip:240

The first word has the seeds, a round for each; the others are COMMIT:MODEL:STEPS. A ratio is that of the medians of the
CPU seconds, which other work on the machine changes little. Every training adds a line of JSON to in_turns.jsonl.
"""

import inspect
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

DATA = Path(__file__).parents[1] / "records" / "speedrun.npz"  # the same for all rows


def program(commit: str, folder: Path) -> Any:
    """Return the speedrun as it was at a commit, after a short training: the first one pays for the start."""
    place = folder / f"{commit}.py"
    source = subprocess.run(["git", "show", f"{commit}:records/speedrun.py"], stdout=subprocess.PIPE, check=True).stdout
    place.write_bytes(source)
    module = SimpleNamespace(**runpy.run_path(str(place)))
    train(module, "smooth", 0, 2)
    return module


def train(module: Any, kind: str, seed: int, steps: int) -> dict[str, Any]:
    """Return what a training found on the test scenes, in percent, and its CPU seconds."""
    world = module.World()
    tests = world.test_scenes()
    watched = [tests] if "tests" in inspect.signature(module.train).parameters else []  # rows 1 to 6
    model, _, (_, seconds) = module.train(world, kind, seed, steps, *watched)
    names = ("found_i2t", "found_t2i", "rejected_by_image", "rejected_by_text")
    results = {name: round(x, 2) for name, x in zip(names, module.evaluate(world, model, tests), strict=True)}
    return {"seed": seed, **results, "cpu_seconds": round(seconds, 2), "load": round(os.getloadavg()[0], 1)}


def main(seeds: str, *rows: str) -> None:
    """Print each row's median of CPU seconds and its ratio to the row before."""
    with TemporaryDirectory() as folder:
        shutil.copy(DATA, folder)
        modules = {commit: program(commit, Path(folder)) for commit in {row.split(":")[0] for row in rows}}
        seconds: dict[str, list[float]] = {row: [] for row in rows}
        for seed in map(int, seeds.split(",")):
            for row in rows:
                commit, kind, steps = row.split(":")
                result = train(modules[commit], kind, seed, int(steps))
                seconds[row].append(result["cpu_seconds"])
                with open("in_turns.jsonl", "a") as out:
                    out.write(json.dumps({"row": row, **result}) + "\n")
    before = None
    for row, taken in seconds.items():
        ratio = "" if before is None else f", {median(taken) / before:.2f} of the row before"
        print(f"{row}: {median(taken):.2f} CPU s, median of {len(taken)}{ratio}")
        before = median(taken)


if __name__ == "__main__":
    main(*sys.argv[1:])
