"""``make gpu-check`` on a machine without a GPU: the checks themselves, and what the report says of those that fail."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import gpu_check
from bench.gpu import fp16, loss, run
from bench.gpu.finding import FAIL, PASS, SKIPPED, Place
from bench.gpu_check import GpuCheck
from filip.command import compose_config
from filip.errors import UserError
from filip.eval.__main__ import Evaluation
from filip.train.config import TrainConfig
from tests.support.launched_ranks import Ranks


def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="sees none, so there is nothing to check"):
        gpu_check.main(GpuCheck(out=str(tmp_path)))
    with pytest.raises(UserError, match="should be among environment, backends"):
        gpu_check.main(GpuCheck(out=str(tmp_path), device="cpu", only=["speed"]))


@pytest.mark.parametrize(
    ("built", "runs"),
    [(["sm_80", "sm_90", "compute_90"], False), (["sm_80", "compute_100"], False), (["sm_90", "sm_100"], True)],
)
def test_a_gpu_without_machine_code_is_refused(
    built: list[str], runs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PTX of the card's own family or of an older one compiles at run time, and its times would be those of that."""
    card = SimpleNamespace(name="B200", major=10, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    with pytest.raises(UserError, match="sizes=x" if runs else r"no machine code for B200 \(10\.0\)"):
        gpu_check.main(GpuCheck(out=str(tmp_path), sizes="x"))


@pytest.mark.parametrize(("seconds", "verdict"), [(4.4, PASS), (4.6, FAIL)])
def test_a_slow_loss_fails(seconds: float, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "SQUARES", [(2, 3)])
    monkeypatch.setattr(loss, "SLICES", [])
    taken = {"product, forward": 1.0, "auto": seconds}
    monkeypatch.setattr(loss, "CONTENDERS", {name: lambda problem, name=name: name for name in taken})
    monkeypatch.setattr(loss, "seconds_and_bytes", lambda name, *_: (taken[name], 0))
    found = loss.check(Place(torch.device("cpu"), False, tmp_path))
    assert found.verdict == verdict, found.said
    assert "1.47 times" in found.said or "1.53 times" in found.said


def test_a_check_that_fails_or_hangs_does_not_stop_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = {"missing": ("Is there such a module?", 5), "hangs": ("Does it end?", 0.02), "environment": ("What?", 5)}
    monkeypatch.setattr(gpu_check, "CHECKS", checks)
    stub = tmp_path / "bench" / "gpu"
    stub.mkdir(parents=True)
    for place in (stub.parent, stub):
        (place / "__init__.py").touch()
    (stub / "run.py").write_text(
        "import json, pathlib, sys, time\n"
        "if sys.argv[1] == 'missing': sys.exit('it broke')\n"
        "if sys.argv[1] == 'hangs': time.sleep(600)\n"
        "found = {'verdict': 'pass', 'said': 'a | b', 'rows': [{'x': 1.23456}, {'y': 'z'}]}\n"
        "pathlib.Path(sys.argv[4], 'finding.json').write_text(json.dumps(found))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SystemExit):
        gpu_check.main(GpuCheck(out="out", device="cpu", sizes="tiny"))
    found = json.loads((tmp_path / "out" / "gpu_check.json").read_text())
    assert [found[name]["verdict"] for name in checks] == [FAIL, FAIL, PASS]
    assert "exit code 1: it broke" in found["missing"]["said"]
    assert "not done after 0.02 minutes" in found["hangs"]["said"]
    report = (tmp_path / "out" / "gpu_check.md").read_text()
    assert "| environment | pass | a \\| b |" in report and "| 1.235 |  |" in report


def test_the_demo_is_trained_and_evaluated_by_commands_that_exist() -> None:
    from bench.gpu.demo import CARD, training
    from filip.study import load_study

    trained = load_study("workflow/config/demo.yaml").training("filip")
    arguments = training(Path("r"), "filip", trained)
    config = compose_config(TrainConfig, arguments[2:], "train").check()
    assert config.model.interaction == "token_wise" and config.data.sources
    assert compose_config(Evaluation, ["model=m", "device=cpu", "root=r", f"data=[{CARD}]", "out=o"]).data == [CARD]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["environment", "backends", "loss", "steps", "evaluation"])
def test_checks_run_on_a_cpu(name: str, tmp_path: Path) -> None:
    run.main(name, "cpu", "tiny", str(tmp_path))
    found = json.loads((tmp_path / "finding.json").read_text())
    assert found["verdict"] == PASS, found
    assert found["rows"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_check_of_trainings_kills_one_and_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun starts the one that is killed, and those of the next test; the others are forked."""

    def run_forked(place: Place, arguments: list[str], log: Path, ranks: int) -> None:
        trained = Ranks(ranks, arguments, log)
        assert trained.wait() == [0] * ranks, trained.text()[-3000:]

    monkeypatch.setattr(fp16, "run", run_forked)
    run.main("fp16", "cpu", "tiny", str(tmp_path))
    found = json.loads((tmp_path / "finding.json").read_text())
    assert found["verdict"] == SKIPPED and found["said"].endswith("killed, resumed, the same bits"), found


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_rung_of_one_node_is_trained(tmp_path: Path) -> None:
    run.main("one_node", "cpu", "tiny", str(tmp_path))
    found = json.loads((tmp_path / "finding.json").read_text())
    assert found["verdict"] == PASS and found["rows"][0]["pairs"] == 16, found
