"""Which checkpoint a start continues from, and when it refuses or starts again: without processes."""

import errno
import importlib
import json
import os
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from filip.common.errors import UserError
from filip.common.files import sha256_of
from filip.runs import saved_files
from filip.runs.record import copy_or_link, record_finish, record_start
from filip.runs.saved_files import LoopState, is_finished, newest_intact, write_state
from filip.train import checkpoint, provenance
from filip.train.checkpoint import Resumption, _prune, choose_checkpoint, prepare_folder, training_hash
from filip.train.config import CheckpointConfig, TrainConfig
from filip.train.losses import TERMS
from filip.train.provenance import resumable_settings, settings_hash
from filip.train.ranks import Ranks
from tests.support.training import compose

ROOT = Path(__file__).parents[2]

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))


def state_of(config: TrainConfig, **more: object) -> LoopState:
    return replace(LoopState(settings=resumable_settings(config), model=asdict(config.model)), **more)  # type: ignore[arg-type]


def save(folder: Path, step: int, state: LoopState) -> Path:
    path = folder / "checkpoints" / f"step{step:08d}"
    path.mkdir(parents=True)
    (path / "weights.pt").write_bytes(b"12345678")
    hashes = {"weights.pt": sha256_of(path / "weights.pt")}
    write_state(path, replace(state, step=step, files={"weights.pt": 8}, hashes=hashes))
    return path


def choose(folder: Path, *overrides: str, resume: str = "auto", **more: object) -> Resumption:
    config = compose("model=tiny", *overrides)
    config.run_dir, config.resume = str(folder), resume
    return choose_checkpoint(config, state_of(config, **more), ALONE)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Make a folder with two checkpoints of the default settings."""
    config = compose("model=tiny")
    for step in (10, 20):
        save(tmp_path, step, state_of(config, init_from="abc", manifests={"a": "1"}))
    return tmp_path


SAME = {"init_from": "abc", "manifests": {"a": "1"}}


@pytest.mark.parametrize("overrides", [(), ("log_every=1", "data.workers=6"), ("log_every=9", "checkpoint.keep=7")])
def test_the_same_training_continues_whatever_its_speed_and_reporting(run: Path, overrides: tuple[str, ...]) -> None:
    result = choose(run, *overrides, **SAME)
    assert result.checkpoint == run / "checkpoints" / "step00000020"
    assert not result.start_again and result.notes[-1].startswith("resumed from")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["optimizer.base_lr=0.001"], r"optimizer\.base_lr was 0\.006, is 0\.001"),
        (["loss.pooled=0.5"], r"loss\.pooled was None, is 0\.5"),
        (["soft_targets=false"], "soft_targets was True, is False"),
        (["data.auto_augment=0"], r"data\.auto_augment was 1.0"),
        (["epochs=3"], r"epochs was 30\.0, is 3\.0"),
    ],
)
def test_other_settings_are_refused_unless_the_checkpoint_is_named(run: Path, overrides: list[str], name: str) -> None:
    with pytest.raises(UserError, match=name):
        choose(run, *overrides, **SAME)
    newest = run / "checkpoints" / "step00000020"
    result = choose(run, *overrides, resume=str(newest), **SAME)
    assert result.checkpoint == newest and " was " in result.notes[-1]


def test_changed_data_are_refused_by_name(run: Path) -> None:
    with pytest.raises(UserError, match="the data manifest of a was 1, is 2"):
        choose(run, init_from="abc", manifests={"a": "2"})
    choose(run, init_from="abc", manifests={"moved": "1"})  # the same data elsewhere


def test_a_fine_tuning_of_other_weights_starts_again(run: Path) -> None:
    result = choose(run, init_from="def", manifests={"a": "1"})
    assert result.checkpoint is None and result.start_again
    assert "init_from holds other weights" in result.notes[0]
    prepare_folder(run / "checkpoints", ALONE, result.start_again)
    assert (run / "checkpoints.1" / "step00000020").is_dir() and not (run / "checkpoints").exists()


def test_a_finished_run_starts_again_and_never_overwrites_what_it_had(run: Path) -> None:
    config = compose("model=tiny")
    record_start(run, config, 0, 1)
    record_finish(run, 30, "c0ffee")
    assert is_finished(run)
    result = choose(run, **SAME)
    assert result.checkpoint is None and result.start_again and "finished before" in result.notes[0]
    record_start(run, config, 0, 1)
    assert not is_finished(run)
    starts = [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]
    assert [s["step"] for s in starts] == [0, 0] and starts[0]["config"]["optimizer"]["base_lr"] == 6e-3
    assert "torch" in starts[0]["versions"] and "commit" in starts[0]


def test_a_finished_run_with_its_result_is_not_trained_again_by_accident(run: Path) -> None:
    config = compose("model=tiny")
    config.out = str(run / "model.safetensors")
    config.run_dir = str(run)
    record_finish(run, 30, None)
    for path in (config.out, config.result):
        Path(path).touch()
    with pytest.raises(UserError, match=r"has finished: its result is .*model\.json"):
        choose_checkpoint(config, state_of(config, **SAME), ALONE)


def test_a_finished_run_gets_its_lost_result_back_if_nothing_differs(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A workflow whose Snakemake was killed deletes the result and starts the training anew."""
    config = compose("model=tiny")
    files = [run / "out" / "o", run / "out" / "o.json"]  # as compose() names them
    files[0].parent.mkdir()
    for file in files:
        file.write_text(file.name)
    code = provenance.code_hash(config)
    record_finish(run, 30, None, training_hash(state_of(config, **SAME)), [str(file) for file in files], code)
    result = choose(run, **SAME)
    assert result.kept == run / "finished" and not result.start_again and "taken from" in result.notes[0]
    for file in files:
        file.unlink()
    for file in files:
        copy_or_link(result.kept / file.name, file)
    assert [file.read_text() for file in files] == ["o", "o.json"]
    assert choose(run, "log_every=3", "data.workers=6", **SAME).kept
    for again in (
        choose(run, init_from="other", manifests={"a": "1"}),
        choose(run, init_from="abc", manifests={"a": "2"}),
        choose(run, "seed=1", **SAME),
        choose(run, resume="never", **SAME),
    ):
        assert again.kept is None and again.start_again
    monkeypatch.setattr(checkpoint, "code_hash", lambda _: "of a later version")
    assert choose(run, **SAME).kept is None


@pytest.mark.parametrize("damage", ["truncated", "missing", "unreadable", "other weights", "another state"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(run: Path, damage: str) -> None:
    newest = run / "checkpoints" / "step00000020"
    if damage == "truncated":
        (newest / "weights.pt").write_bytes(b"123")
    elif damage == "missing":
        (newest / "weights.pt").unlink()
    elif damage == "other weights":
        (newest / "weights.pt").write_bytes(b"12345677")
    elif damage == "another state":
        state = (newest / "state.json").read_text()
        (newest / "state.json").write_text(state.replace('"step": 20', '"step": 21'))
    else:
        (newest / "state.json").write_text("{")
    result = choose(run, **SAME)
    assert result.checkpoint == run / "checkpoints" / "step00000010"
    assert "skipped the damaged checkpoint" in result.notes[0] and "step00000020" in result.notes[0]
    assert newest_intact(run / "checkpoints")[0] == result.checkpoint
    save(run, 15, state_of(compose("model=tiny")))
    _prune(run / "checkpoints", CheckpointConfig(keep=1))
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step00000015", "damaged-step00000020"}


def test_a_disk_that_fails_now_damages_no_checkpoint(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the training would set all of them aside, and start again."""

    def fails(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(saved_files, "sha256_of", fails)
    with pytest.raises(OSError, match="Input/output error"):
        choose(run, **SAME)
    assert (run / "checkpoints" / "step00000020").is_dir()


def test_the_folder_hash_covers_learning_settings_only() -> None:
    reference = settings_hash(compose("model=tiny"))
    for same in (
        "log_every=7", "data.workers=3", "checkpoint.keep=9", "eval.every_steps=5",
        "run=other", "zero_stage=2", "gradient_cache=4",
    ):  # fmt: skip
        assert settings_hash(compose("model=tiny", same)) == reference, same
    others = ("seed=1", "optimizer.weight_decay=1e-3", "model.embed_dim=8", "data.sources=[{shards: a}]", "epochs=2")
    for other in others:
        assert settings_hash(compose("model=tiny", other)) != reference, other


def test_what_is_edited_in_a_deepspeed_file_is_a_change_of_the_training(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    shipped = json.loads((ROOT / "ds_configs/zero1_fp32.json").read_text())

    def said(**changes: object) -> tuple[str, dict]:
        file.write_text(json.dumps({**shipped, **changes}))
        config = compose("model=tiny", f"deepspeed={file}")
        return settings_hash(config), resumable_settings(config)

    before = said()
    assert said(steps_per_print=7, zero_optimization={"stage": 1}) == before, "speed and reporting alone"
    clipped = said(gradient_clipping=0.001)
    assert clipped[0] != before[0] and clipped[1]["deepspeed"] != before[1]["deepspeed"]


def test_another_package_s_term_is_code_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of it would otherwise be answered with the weights of before."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "outside_terms.py").write_text("def compute(batch): return 1\n")
    outside_terms = importlib.import_module("outside_terms")

    term = replace(TERMS["pooled"], compute=partial(outside_terms.compute))
    monkeypatch.setitem(TERMS, "outside", term)
    config, plain = compose("model=tiny"), provenance.code_hash(compose("model=tiny"))
    config.loss = {"token_wise": 1.0, "outside": 0.5}
    used = provenance.code_hash(config)
    (tmp_path / "outside_terms.py").write_text("def compute(batch): return 2\n")
    assert len({plain, used, provenance.code_hash(config)}) == 3
    assert provenance.code_hash(compose("model=tiny")) == plain
    assert all(map(provenance._sources, provenance.LEARNING_CODE)), "a package has moved"
