"""Runs that are killed, stopped or moved to another number of ranks continue as if nothing had happened."""

import json
import random
import signal
import time
from pathlib import Path
from socket import gethostname

import pytest

from filip.export.__main__ import Export, export
from filip.models import load_model
from filip.resources import shipped
from filip.runs.saved_files import complete_checkpoints, find_damage
from filip.train.launcher_env import MACHINE_FAILED
from filip.train.supervise import first_error
from tests.support.launched_ranks import Ranks
from tests.support.training import flip_bit, losses, records, run_many, same_weights, train_arguments


@pytest.mark.slow
def test_killed_three_times_ends_bit_identical(squares: Path, tmp_path: Path) -> None:
    """The other precisions and ZeRO stages resume as exactly, see the test with a signal."""
    common = ("zero_stage=2", "max_steps=30", "checkpoint.every_steps=2", "data.workers=1")
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert run_many(2, [train_arguments(squares, undisturbed, *common)], tmp_path / "log") == [0]
    choice, saves = random.Random(0), killed / "checkpoints"
    for attempt in range(3):
        before = complete_checkpoints(saves)
        ranks = Ranks(2, train_arguments(squares, killed, *common), tmp_path / f"log{attempt}")
        while complete_checkpoints(saves) == before and ranks.processes[0].poll() is None:
            time.sleep(0.02)
        message, more = len(records(killed)), choice.randrange(4)
        while len(records(killed)) < message + more and ranks.processes[0].poll() is None:
            time.sleep(0.01)
        time.sleep(choice.random() * 0.1)  # anywhere in a step, or in the next save
        ranks.processes[choice.randrange(2)].kill()
        assert any(code != 0 for code in ranks_end(ranks)), "it ended before it was killed"
        assert not (killed / "model.json").exists()
    last = Ranks(2, train_arguments(squares, killed, *common), tmp_path / "log_last")
    assert last.wait() == [0, 0], last.text()[-2000:]
    assert same_weights(undisturbed / "model.safetensors", killed / "model.safetensors")
    assert losses(undisturbed) == losses(killed)  # the log has each step once, with the very same numbers
    seconds = [record["time/processor_seconds"] for record in records(killed) if "time/processor_seconds" in record]
    assert seconds == sorted(seconds) and seconds
    assert [p.name for p in saves.iterdir() if p.name.startswith(".")] == []
    assert len(complete_checkpoints(saves)) == 1


def ranks_end(ranks: Ranks) -> list[int]:
    """Wait until a rank has died, then kill the rest, as launchers do."""
    while all(process.poll() is None for process in ranks.processes):
        time.sleep(0.05)
    ranks.kill()
    return [process.wait(60) for process in ranks.processes]


@pytest.mark.slow
def test_stopped_by_a_signal_goes_on_bit_identical_in_every_precision(squares: Path, tmp_path: Path) -> None:
    settings = json.loads((shipped("ds_configs") / "zero2_fp16.json").read_text())
    settings["fp16"] |= {"initial_scale_power": 11, "hysteresis": 1}  # overflows before and after the stop
    (tmp_path / "fp16.json").write_text(json.dumps(settings))
    cases = {
        "bf16": ("precision=bf16", "zero_stage=1"),
        "fp16": ("precision=fp16", "zero_stage=2", f"deepspeed={tmp_path}/fp16.json", "gradient_cache=6"),
        "zero3": ("precision=fp32", "zero_stage=3"),
        "zero2": ("optimizer.name=adamw", "zero_stage=2", "optimizer.base_lr=1e-3"),
        "adamw": (
            "optimizer.name=adamw", "engine=ddp", "optimizer.base_lr=1e-3", "gradient_accumulation=2",
            "data.augment_on=device", "data.auto_augment=1",
        ),
    }  # fmt: skip
    runs = []
    for name, overrides in cases.items():
        overrides = (*overrides, "max_steps=8", "global_batch=24")
        runs.append(train_arguments(squares, tmp_path / f"{name}_whole", *overrides))
        runs.append([*train_arguments(squares, tmp_path / name, *overrides), "stop_after=4"])
        runs.append(train_arguments(squares, tmp_path / name, *overrides))
    codes = run_many(2, runs, tmp_path / "log")
    assert codes == [0, 85, 0] * len(cases)
    for name in cases:
        one, other = tmp_path / f"{name}_whole", tmp_path / name
        assert same_weights(one / "model.safetensors", other / "model.safetensors"), name
        assert losses(one) == losses(other), name
        kinds = [line["event"] for line in records(other) if "event" in line]
        assert kinds == ["checkpoint", "signal", "resume", "done"], name
        stopped = tmp_path / f"{name}_export.safetensors"
        checkpoint = max((other / "checkpoints").glob("step*"))  # the stop's: the end writes weights only
        export(Export(model=str(checkpoint), out=str(stopped)))
        assert same_weights(stopped, other / "at_stop.safetensors"), name
        assert load_model(stopped).config == load_model(one / "model.safetensors").config
        export(Export(model=str(other), out=str(tmp_path / "finished.safetensors")))
        assert same_weights(tmp_path / "finished.safetensors", other / "model.safetensors"), name


@pytest.mark.slow
def test_older_checkpoints_are_gone_back_to_by_name_and_from_damaged_ones(squares: Path, tmp_path: Path) -> None:
    def arguments(*overrides: str) -> list[str]:
        return train_arguments(squares, tmp_path / "run", "max_steps=10", "checkpoint.every_steps=3", *overrides)

    saves = tmp_path / "run" / "checkpoints"
    whole = arguments(f"out={tmp_path}/whole.safetensors", "checkpoint.keep=3")
    back = [*arguments(f"resume={saves}/step00000003", "checkpoint.keep=2"), "stop_after=5"]
    assert run_many(2, [whole, back], tmp_path / "log") == [0, 85]
    assert "renamed the newer checkpoints step00000006, step00000009" in (tmp_path / "log").read_text()
    choice = random.Random(0)
    files = [file for file in sorted((saves / "step00000006").iterdir()) if file.stat().st_size]
    for file in choice.choices(files, [file.stat().st_size for file in files], k=100):
        bit = choice.randrange(8 * file.stat().st_size)
        flip_bit(file, bit)
        assert find_damage(saves / "step00000006"), (file, bit)
        flip_bit(file, bit)
    assert find_damage(saves / "step00000006") is None
    largest = max(files, key=lambda file: file.stat().st_size)
    flip_bit(largest, 4 * largest.stat().st_size)  # torch.load would not notice
    assert run_many(2, [arguments("checkpoint.keep=1")], tmp_path / "log") == [0]
    assert f"step00000006: {largest.name} has changed since it was written" in (tmp_path / "log").read_text()
    assert same_weights(tmp_path / "whole.safetensors", tmp_path / "run" / "model.safetensors")
    names = sorted(path.name for path in saves.iterdir() if path.is_dir())
    assert names == [
        "damaged-step00000006", "step00000009", "superseded-step00000006", "superseded-step00000009",
    ]  # fmt: skip


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_with_the_same_batches(squares: Path, tmp_path: Path) -> None:
    def arguments(name: str, *overrides: str) -> list[str]:
        return train_arguments(
            squares, tmp_path / name, "model.interaction=pooled", "max_steps=12", "engine=ddp", "zero_stage=1",
            *overrides
        )  # fmt: skip

    sharded = ("engine=deepspeed", "zero_stage=2")
    first = [
        arguments("whole"),
        [*arguments("shrinks"), "stop_after=6"],
        [*arguments("sharded", *sharded), "stop_after=6"],
    ]
    assert run_many(2, first, tmp_path / "log1") == [0, 85, 85]
    second = [[*arguments("grows"), "stop_after=6"], arguments("shrinks"), arguments("sharded", *sharded)]
    assert run_many(1, second, tmp_path / "log2") == [85, 0, 2]
    assert "saved by 2 ranks under ZeRO-2, and this run has 1 under ZeRO-2" in (tmp_path / "log2").read_text()
    stop = tmp_path / "grows" / "checkpoints"
    other_batch = [*arguments("refused", "global_batch=48", f"resume={complete_checkpoints(stop)[-1]}")]
    assert run_many(2, [other_batch, arguments("grows")], tmp_path / "log3") == [2, 0]
    assert "pairs_per_step=24" in (tmp_path / "log3").read_text()
    for name in ("shrinks", "grows"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "whole"), abs=2e-5), name
        assert "ranks then" in (tmp_path / name / "log.jsonl").read_text()


@pytest.mark.slow
def test_signals_reach_real_processes_and_user_mistakes_are_told_once(squares: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks = Ranks(2, train_arguments(squares, run, "max_steps=2000"), tmp_path / "log")
    while "training: 3 of " not in ranks.text() and ranks.processes[0].poll() is None:
        time.sleep(0.1)
    ranks.processes[1].send_signal(signal.SIGTERM)  # one rank is enough, whichever it is
    assert ranks.wait() == [85, 85], ranks.text()[-2000:]
    assert len(complete_checkpoints(run / "checkpoints")) == 1 and not (run / "model.json").exists()
    for overrides, sentence in {
        ("global_batch=25",): "global_batch=25 cannot be shared evenly by 2 ranks",
        ("no_such_key=1",): "no_such_key",
    }.items():
        ranks = Ranks(2, train_arguments(squares, tmp_path / "bad", *overrides), tmp_path / "log2")
        assert ranks.wait() == [2, 2]
        text = ranks.text()
        assert text.count("error:") == 1 and sentence in text and "Traceback" not in text, text


FAILING_DISK = """
import os, runpy, sys
failing, read, done = sys.argv.pop(1), os.pread, []
def pread(*given):
    done.append(given)
    if os.environ["RANK"] == failing and len(done) > 40:
        raise OSError(5, "Input/output error")
    return read(*given)
os.pread = pread
from filip.loading import loader
loader.PAUSES = (0, 0)
runpy.run_module("filip.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_any_rank_names_its_broken_disk_and_asks_for_another_start(squares: Path, tmp_path: Path, failing: int) -> None:
    _, _, *arguments = train_arguments(squares, tmp_path / "run", "max_steps=2000")
    ranks = Ranks(2, ["-c", FAILING_DISK, str(failing), *arguments], tmp_path / "log")
    codes = ranks_end(ranks)
    assert codes[failing] == MACHINE_FAILED
    sentence = first_error(ranks.text())
    assert sentence.startswith(f"error: rank {failing} on {gethostname()}: cannot read the shard {squares / 'shards'}")
    assert sentence.endswith(".tar: Input/output error")


@pytest.mark.slow
def test_a_signal_to_the_loaders_workers_too_still_saves(squares: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = train_arguments(squares, run, "max_steps=2000", "data.workers=2")
    ranks = Ranks(1, arguments, tmp_path / "log")
    while "training: 3 of " not in ranks.text() and ranks.processes[0].poll() is None:
        time.sleep(0.1)
    ranks.processes[0].signal_group(signal.SIGTERM)
    assert ranks.wait() == [85], ranks.text()[-2000:]
    assert len(complete_checkpoints(run / "checkpoints")) == 1
    assert ranks.text().count("saving at the next step boundary") == 1
