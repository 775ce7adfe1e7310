"""Which checkpoints exist, are kept, can be gone on from, and on which data; and what a full disk leaves."""

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from socket import gethostname

import pytest

from filip.cli.command import compose_config
from filip.common.errors import UserError
from filip.data import manifest
from filip.data.sidecar import write_sidecar
from filip.runs.saved_files import LoopState, complete_checkpoints, newest_intact, read_state
from filip.train.checkpoint import _prune, check_compatible
from filip.train.config import CheckpointConfig, TrainConfig
from filip.train.launcher_env import MACHINE_FAILED
from filip.train.training_data import refuse_changed_data
from tests.data.test_manifest import data_set
from tests.support.processes import run_python
from tests.support.training import train_arguments


def make(folder: Path, step: int, complete: bool = True) -> Path:
    path = folder / f"step{step:08d}"
    path.mkdir(parents=True)
    if complete:
        (path / "state.json").write_text(json.dumps(asdict(LoopState(step=step))))
    return path


def test_the_newest_finished_checkpoint_is_found(tmp_path: Path) -> None:
    assert newest_intact(tmp_path / "none") == (None, [])
    older, newest = make(tmp_path, 90), make(tmp_path, 1000)
    make(tmp_path, 2000, complete=False)
    make(tmp_path, 3000).rename(tmp_path / ".saving-step00003000")  # killed just before it was published
    make(tmp_path, 80).rename(tmp_path / ".old-step00000080")  # killed while it was being deleted
    assert complete_checkpoints(tmp_path) == [older, newest]
    assert newest_intact(tmp_path) == (newest, [])
    (older / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state\.json"):
        read_state(older)


def test_retention(tmp_path: Path) -> None:
    for step in range(10, 80, 10):
        make(tmp_path, step)
    _prune(tmp_path, CheckpointConfig(keep=2, keep_every_steps=30))
    assert [p.name for p in sorted(tmp_path.iterdir())] == [f"step{step:08d}" for step in (30, 60, 70)]


@pytest.mark.parametrize(
    ("saved", "now", "fits"),
    [
        ((2, 1), (2, 1), True), ((2, 0), (5, 0), True), ((2, 1), (4, 1), False), ((2, 1), (2, 2), False),
        ((2, 3), (1, 3), False),
    ],
)  # fmt: skip
def test_parts_of_ranks_fit_as_many_ranks_and_the_same_stage(saved: tuple, now: tuple, fits: bool) -> None:
    before, after = (LoopState(world_size=ranks, zero_stage=stage) for ranks, stage in (saved, now))
    with nullcontext() if fits else pytest.raises(UserError, match="resume with as many ranks and the same zero_stage"):
        check_compatible(before, after)


@pytest.mark.parametrize(
    "change",
    [{"engine": "ddp"}, {"pairs_per_step": 2}, {"precision": "bf16"}, {"optimizer": "adamw"}, {"model": {"a": 1}}],
)
def test_another_run_is_refused_by_name(change: dict) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        check_compatible(LoopState(), LoopState(**change))
    check_compatible(LoopState(step=5, world_size=8), LoopState())
    check_compatible(
        LoopState(model={"gradient_checkpointing": True}), LoopState(model={"gradient_checkpointing": False})
    )


LIMITED = """
import resource, runpy, sys
sys.dont_write_bytecode = True  # Python would cut it off
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))  # to a program the same as a full disk
runpy.run_module("filip.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("every", "named"), [(0, "model.safetensors"), (1, "checkpoints")])
def test_a_full_disk_is_a_sentence(every: int, named: str, squares: Path, tmp_path: Path) -> None:
    settings = ["max_steps=2", "optimizer.warmup_steps=1", f"checkpoint.every_steps={every}"]
    _, _, *arguments = train_arguments(squares, tmp_path / "run", *settings)
    result = run_python("-c", LIMITED, *arguments)
    assert result.returncode == MACHINE_FAILED and "Traceback" not in result.stderr, result.stderr
    assert f"error: rank 0 on {gethostname()}: {tmp_path / 'run' / named}: " in result.stderr.splitlines()[-1]
    assert not list((tmp_path / "run").glob("*model.safetensors*"))


def test_changed_captions_are_refused_until_the_manifest_is_written_again(tmp_path: Path) -> None:
    described = data_set(tmp_path / "data")
    manifest.main(described)
    source = f"{{shards: {described.shards}, captions: {described.captions}, manifest: {described.out}}}"
    places = ["run_dir=-", "out=-"]
    config = compose_config(TrainConfig, ["experiment=demo_from_scratch", *places, f"data.sources=[{source}]"], "train")
    refuse_changed_data(config)
    row = {"key": "10", "captions": ["another one"], "origins": ["original"], "group": 5}
    write_sidecar(Path(described.captions) / "00001.parquet", [row])
    with pytest.raises(UserError, match=r"manifest\.json: shard 00001: .*captions.* changed"):
        refuse_changed_data(config)
    manifest.main(described)
    refuse_changed_data(config)
