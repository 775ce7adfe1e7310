"""The imports of a command at its start: a list of modules rather than seconds, which depend on the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.eval.miniature import write_model, write_webdataset

ROOT = Path(__file__).resolve().parent.parent
DRAWING = {"matplotlib"}
STATISTICS = {"scipy.stats", "sklearn", "pandas"}
COMPILER = {"torch._dynamo", "torch._inductor", "sympy", "triton"}
OF_OTHERS = {"wandb", "transformers", "sentence_transformers", "datasets", "onnxruntime"}
HEAVY = DRAWING | STATISTICS | COMPILER | OF_OTHERS | {"deepspeed", "tensorboard"}

# From light to heavy, all in one process: what a module must not import, nor those before it.
STARTED = {
    "filip.__main__": HEAVY | {"torch", "numpy", "hydra"},
    "filip.study": HEAVY | {"torch", "hydra"},  # what the Snakefile imports
    "filip.api": HEAVY | {"timm", "torchvision", "pyarrow", "duckdb"},
    "filip.eval.__main__": HEAVY | {"timm", "torchvision", "pyarrow", "duckdb"},
    "filip.eval.picture": HEAVY | {"timm", "torchvision", "pyarrow", "duckdb"},
    "filip.search.__main__": HEAVY | {"timm", "torchvision", "pyarrow", "duckdb"},
    "filip.explore.export": HEAVY | {"timm", "torchvision", "pyarrow", "duckdb"},
    "filip.train.plan": HEAVY,
    "filip.train.loop": HEAVY,
}
REPORT = {f"filip.report.{name}": {"torch"} | HEAVY - {"pandas"} for name in ("tables", "summary", "show")}
REPORT["filip.report.page"] = {"torch"} | HEAVY - {"pandas", "matplotlib"}
IMPORTED = """
import importlib, json, sys
found = {}
for name, forbidden in json.loads(sys.argv[1]).items():
    importlib.import_module(name)
    found[name] = sorted(set(forbidden) & set(sys.modules))
print(json.dumps(found))
"""
EVALUATED = """
import json, runpy, sys
forbidden, *sys.argv[1:] = sys.argv[1:]
runpy.run_module("filip", run_name="__main__", alter_sys=True)
print(json.dumps(sorted(set(json.loads(forbidden)) & set(sys.modules))))
"""
USED = """
import sys
from filip.light_imports import light_imports
with light_imports():
    import timm
    import torch
    import torchvision

    @torch.compiler.disable  # as timm's own functions are
    def double(x):
        return 2 * x

    @torch.compiler.disable(recursive=False, reason="why")
    def triple(x):
        return 3 * x

    @torch.compile(backend="eager")  # as DeepSpeed's Muon is
    def fourfold(x):
        return 4 * x
assert not {"sympy", "torch._dynamo", "torch._dynamo.utils", "wandb"} & set(sys.modules)

assert sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu") in (True, False)
assert "sympy" in sys.modules and torch._dynamo.__file__
assert double(2) == 4 and triple(2) == 6
calls = torch._dynamo.utils.counters["frames"]
assert fourfold(torch.ones(1)) == 4 == fourfold(torch.ones(1)) and calls["ok"] == 1
import wandb
assert wandb.__file__

with light_imports():
    import torch._dynamo
assert torch._dynamo.__file__
"""
ASKED = """
from filip.light_imports import light_imports
with light_imports():
    from torch._dynamo import config           # not one of the functions that are put off
    from torch._dynamo.utils import counters
assert config.cache_size_limit and counters is __import__("torch._dynamo.utils")._dynamo.utils.counters
"""


OPTIMISED = """
import sys
import torch
from filip.light_imports import light_imports, put_off_compiler
put_off_compiler()
weights = [torch.ones(3, requires_grad=True)]
optimiser = torch.optim.AdamW(weights, lr=0.1)
weights[0].sum().backward()
optimiser.step()
with light_imports():
    import timm
assert (weights[0] < 1).all() and "sympy" not in sys.modules
import torch._dynamo.config
assert "sympy" in sys.modules and torch._dynamo.config.cache_size_limit
double = torch.compile(lambda x: 2 * x, backend="eager", fullgraph=True)
assert double(torch.ones(2)).tolist() == [2, 2]
"""
STUDY_READ = """
import json, sys
from filip.study import load_study
assert load_study("workflow/config/demo.yaml").rows("retrieval")
print(json.dumps("torch" in sys.modules))
"""
STEM_BUILT = """
import json, sys
import torch
from filip.models.dual_encoder import build_model
from tests.support.training import compose
with torch.device("meta"):
    build_model(compose("experiment=demo_small").model)
print(json.dumps(sorted(set(json.loads(sys.argv[1])) & set(sys.modules))))
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("started", [STARTED, REPORT], ids=["commands", "report"])
def test_what_a_command_need_not_have_is_not_imported(started: dict[str, set[str]]) -> None:
    lists = {name: sorted(forbidden) for name, forbidden in started.items()}
    assert json.loads(run(IMPORTED, json.dumps(lists))) == {name: [] for name in started}


def test_an_evaluation_loads_and_runs_a_model_without_compiler_and_drawing(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "demo_fluent", None, [[f"text {i}"] for i in range(4)])
    model = write_model(tmp_path / "m.safetensors")
    options = [f"model={model}", "data=[demo_fluent]", f"root={tmp_path}", f"out={tmp_path / 'out'}"]
    printed = run(EVALUATED, json.dumps(sorted(HEAVY)), "eval", *options)
    assert "retrieval" in printed and json.loads(printed.splitlines()[-1]) == []


@pytest.mark.parametrize("code", [USED, ASKED, OPTIMISED], ids=["used", "asked", "optimised"])
def test_what_was_put_off_is_there_when_it_is_used(code: str) -> None:
    run(code)


def test_the_report_reads_a_study_without_pytorch() -> None:
    assert json.loads(run(STUDY_READ)) is False


def test_the_demo_s_model_is_loaded_without_torch_s_compiler() -> None:
    assert json.loads(run(STEM_BUILT, json.dumps(sorted(COMPILER)))) == []
