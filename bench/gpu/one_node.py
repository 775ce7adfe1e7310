"""``experiment=one_node`` as it stands, on all cards of this machine: does it run, how fast, and how full are they?"""

import math
from typing import Any

from bench.gpu.finding import FAIL, PASS, Finding, Place
from bench.gpu.trainings import ranks_of, run
from filip.command import compose_config
from filip.train.config import TrainConfig
from tests.support.squares import write_shards
from tests.support.training import losses, records

STEPS, PAIRS = (30, 192)  # the same few images again and again: they are decoded, cropped and augmented all the same
# On a CPU the same settings, as small as possible.
TINY: dict[str, Any] = {
    "model": "tiny", "precision": "fp32", "compile": "false", "global_batch": 16, "gradient_cache": 8, "max_steps": 3,
    "backend": "tiled",
}  # fmt: skip


def check(place: Place) -> Finding:
    """Train some steps with as many pairs a card as the experiment has on eight."""
    data, folder, ranks = place.folder / "data", place.folder / "run", ranks_of(place)
    if not data.exists():
        write_shards(data, shards=3, per_shard=PAIRS // 3)
    known = compose_config(TrainConfig, ["experiment=one_node", "run_dir=-", "out=-"], "train")
    pairs = (known.global_batch or 0) // 8 * ranks
    settings: dict[str, Any] = {
        "experiment": "one_node", "global_batch": pairs, "epochs": "null", "max_steps": STEPS, "log_every": 3,
        "optimizer.warmup_steps": 1, "run_dir": folder, "out": folder / "model.safetensors", "resume": "never",
        "data.sources": f"[{{shards: {data}/shards, captions: {data}/captions, weight: {math.ceil(pairs / PAIRS)}}}]",
    } | (TINY if place.tiny else {})  # fmt: skip
    arguments = [f"{name}={value}" for name, value in settings.items()]
    run(place, ["-m", "filip.train", *arguments], place.folder / "train.log", ranks)
    last = [line for line in records(folder) if "speed/pairs_per_second" in line][-1]
    shown = ("speed/pairs_per_second", "speed/mfu", "speed/data_wait_seconds", "memory/peak_mb")
    row = {"ranks": ranks, "pairs": settings["global_batch"], **{name: last[name] for name in shown if name in last}}
    said = f"{last['speed/pairs_per_second']:,.0f} pairs/s on {ranks} ranks, {last['memory/peak_mb']:,.0f} MB a rank"
    return Finding(PASS if all(map(math.isfinite, losses(folder))) else FAIL, said, [row])
