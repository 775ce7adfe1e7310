"""Tiny trainings: their command lines, running them, reading what they left."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from filip.cli.command import compose_config
from filip.models import DualEncoder
from filip.train.config import TrainConfig
from filip.train.optimizers import OptimizerKind
from tests.support.launched_ranks import Ranks

HERE = Path(__file__).parent
# an optimiser that does not look at found_inf, as another package may bring one
MOMENTUM = OptimizerKind(lambda groups, o: torch.optim.SGD(groups, o.base_lr, momentum=0.9), state_bytes=4)


def compose(*overrides: str) -> TrainConfig:
    """Return a checked configuration that names no real files, in fp16 unless an experiment or ``overrides`` say."""
    named = any(override.startswith("experiment=") for override in overrides)
    places = ["run_dir=r", "out=o", *([] if named else ["precision=fp16"])]
    return compose_config(TrainConfig, [*places, *overrides], "train").check()


def train_arguments(data: Path, run_dir: Path, *overrides: str) -> list[str]:
    """Return ``-m filip.train`` arguments on the squares with the tiny model; later overrides win."""
    base = {
        "experiment": "demo_from_scratch", "model": "tiny", "run": "test", "run_dir": str(run_dir),
        "out": str(run_dir / "model.safetensors"),
        "data.sources": f"[{{shards: {data}/shards, captions: {data}/captions}}]",
        "global_batch": "24", "max_steps": "20", "log_every": "1",
        # the paper's optimiser, in the precision that lets runs be compared; not as the demo happens to train
        "precision": "fp32", "transport_dtype": "fp32", "optimizer.name": "lamb", "optimizer.base_lr": "1.3e-2",
        "optimizer.warmup_steps": "4",
        "optimizer.weight_decay": "3.0e-2", "optimizer.temperature_lr_factor": "1.0",
        # a backend that needs no compiler and no compiled cache: the interaction has separate tests
        "backend": "tiled", "checkpoint.every_minutes": "0", "data.workers": "0",
    }  # fmt: skip
    for override in overrides:
        name, _, value = override.partition("=")
        base[name] = value
    return ["-m", "filip.train", *(f"{name}={value}" for name, value in base.items())]


def records(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def series(run_dir: Path, key: str) -> list[float]:
    return [line[key] for line in records(run_dir) if key in line]


def losses(run_dir: Path) -> list[float]:
    return series(run_dir, "loss/total")


def run_many(world_size: int, runs: list[list[str]], log: Path, timeout: float = 400) -> list[int]:
    """Return the exit codes of trainings that share one start of ``world_size`` ranks."""
    ranks = Ranks(world_size, [str(HERE / "many_runs.py"), json.dumps(runs)], log, groups=len(runs))
    assert ranks.wait(timeout) == [0] * world_size, ranks.text()[-3000:]
    text = ranks.text()
    codes = []
    for number in range(len(runs)):
        results = [line for line in text.splitlines() if line.startswith(f"run {number} exit ")]
        assert len(results) == world_size and len(set(results)) == 1, text[-3000:]
        codes.append(int(results[0].split()[-1]))
    return codes


def kept_by_autograd(model: DualEncoder, pairs: int) -> int:
    """Return the bytes that a forward pass of ``pairs`` keeps for the backward pass, weights excluded."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    side, words, dtype = model.image_size, model.config.text.context_length, next(model.parameters()).dtype
    batch = torch.randn(pairs, 3, side, side, dtype=dtype), torch.ones(pairs, words, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(*batch, torch.full((pairs,), words))
    del outputs
    return sum(kept.values())


def largest_difference(one: Path, other: Path) -> float:
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def same_weights(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def flip_bit(file: Path, bit: int) -> None:
    """Change one bit of a file in place, as failing memory or a failing disk does."""
    with open(file, "r+b") as opened:
        opened.seek(bit // 8)
        byte = opened.read(1)[0]
        opened.seek(bit // 8)
        opened.write(bytes([byte ^ 1 << bit % 8]))
