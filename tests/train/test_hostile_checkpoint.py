"""A run folder of somebody else: no file of it runs code, whoever loads it."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from filip.common.errors import UserError
from filip.common.files import sha256_of
from filip.runs.saved_files import complete_checkpoints, read_state, write_state
from filip.runs.source import read_source
from tests.support.training import run_many, train_arguments


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.mkdir, (str(self.trace),)


@pytest.mark.slow
def test_a_pickle_in_any_file_of_a_run_is_refused_by_evaluation_and_resume(squares: Path, tmp_path: Path) -> None:
    engines = {"ddp": ("engine=ddp",), "zero1": ("zero_stage=1", "optimizer.name=adamw"), "zero3": ("zero_stage=3",)}
    common = ("max_steps=4", "checkpoint.every_steps=2", "optimizer.warmup_steps=1")
    whole = {name: train_arguments(squares, tmp_path / name, *common, *o) for name, o in engines.items()}
    stopped = [[*arguments, "stop_after=1"] for arguments in whole.values()]
    assert run_many(1, stopped, tmp_path / "log") == [85] * len(engines)
    resumed, traces = [], []
    for name in engines:
        run = tmp_path / name
        (checkpoint,) = complete_checkpoints(run / "checkpoints")
        read_source(str(run))  # as it was written it is read
        for file in sorted(path for path in checkpoint.iterdir() if path.name != "state.json"):
            for kind in ("torch", "plain"):
                trace = tmp_path / f"{name} {file.name} {kind}"
                copy = tmp_path / f"{name}_{file.stem}_{kind}"
                shutil.copytree(run, copy)
                target = copy / "checkpoints" / checkpoint.name / file.name
                if kind == "torch":
                    torch.save({"module": Hostile(trace)}, target)
                else:
                    target.write_bytes(pickle.dumps(Hostile(trace)))
                state = read_state(target.parent)
                state.files[file.name], state.hashes[file.name] = target.stat().st_size, sha256_of(target)
                write_state(target.parent, state)
                traces.append(trace)
                if file.name == "training.pt" or "states" in file.name:
                    with pytest.raises(UserError):
                        read_source(str(copy))
                resumed.append([*train_arguments(squares, copy, *common, *engines[name])])
    codes = run_many(1, resumed, tmp_path / "log2", timeout=900)
    refused = {arguments[5].rpartition("/")[2]: code for arguments, code in zip(resumed, codes, strict=True)}
    assert set(refused.values()) == {2}, refused
    assert (tmp_path / "log2").read_text().count("beside tensors and plain state") >= len(refused)
    assert [trace for trace in traces if trace.exists()] == []
