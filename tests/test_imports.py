"""The imports of a command at its start: a list of modules rather than seconds, which depend on the machine."""

import json

import pytest

from tests.support.processes import run_well

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


@pytest.mark.slow
@pytest.mark.parametrize("started", [STARTED, REPORT], ids=["commands", "report"])
def test_what_a_command_need_not_have_is_not_imported(started: dict[str, set[str]]) -> None:
    lists = {name: sorted(forbidden) for name, forbidden in started.items()}
    done = run_well("-c", IMPORTED, json.dumps(lists))
    assert json.loads(done.stdout) == {name: [] for name in started}
