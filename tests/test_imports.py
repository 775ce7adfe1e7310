"""The imports of a command at its start: a list of modules rather than seconds, which depend on the machine."""

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
    "filip.train.plan": HEAVY - COMPILER - {"wandb"},
    "filip.train.loop": HEAVY - COMPILER - {"wandb"} | {"duckdb", "img2dataset"},
}
REPORT = {f"filip.report.{name}": HEAVY - {"pandas"} for name in ("tables", "summary", "show")}
REPORT["filip.report.page"] = HEAVY - {"pandas", "matplotlib"}
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
STUDY_READ = """
import json, sys
from filip.study import load_study
assert load_study("workflow/config/demo.yaml").rows("retrieval")
print(json.dumps("torch" in sys.modules))
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


def test_an_evaluation_loads_and_runs_a_model_without_drawing(tmp_path: Path) -> None:
    write_webdataset(tmp_path / "demo_fluent", None, [[f"text {i}"] for i in range(4)])
    model = write_model(tmp_path / "m.safetensors")
    options = [f"model={model}", "data=[demo_fluent]", f"root={tmp_path}", f"out={tmp_path / 'out'}"]
    printed = run(EVALUATED, json.dumps(sorted(DRAWING | STATISTICS | {"deepspeed", "transformers"})), "eval", *options)
    assert "retrieval" in printed and json.loads(printed.splitlines()[-1]) == []


def test_the_report_reads_a_study_without_pytorch() -> None:
    assert json.loads(run(STUDY_READ)) is False
