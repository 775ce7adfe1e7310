"""``make gpu-check`` on a machine without a GPU: what it trains, and the script itself at tiny sizes."""

import re
from pathlib import Path

import pytest

from bench.gpu_check import RECIPES, GpuCheck, main
from filip import conf


def test_it_trains_every_experiment_but_the_demo_s_the_paper_s_first() -> None:
    experiments = {file.stem for file in Path(conf.__path__[0], "experiment").glob("*.yaml")}
    assert {name for name in experiments if not name.startswith("demo")} == set(RECIPES)
    assert RECIPES[:3] == ("base", "large", "ablation")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_all_checks_run_on_a_cpu(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(GpuCheck(out=str(tmp_path), device="cpu", sizes="tiny"))
    said = "".join(capfd.readouterr())
    assert "tiled, smooth, 3 x 5, torch.bfloat16: values" in said and "times 5 products" in said
    assert "one_node: ZeRO-1, bf16, smooth, tokens 1, cache, compile, augment on device: loss " in said
    assert re.search(r"one_node, ZeRO-1 [\d.]+ ms a step, DDP [\d.]+ ms: engine=(deepspeed|ddp) is faster", said)
    assert [line.partition(":")[0] for line in said.splitlines() if " augment on " in line] == list(RECIPES)
