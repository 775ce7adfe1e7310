"""For all tests."""

import gc
import os
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The files that take longest, waiting included, longest first; they and the others are given out in this order.
LONGEST_FIRST = (
    "tests/cluster/test_slurm.py",
    "tests/workflow/test_whole_run.py",
    "tests/workflow/test_run.py",
    "tests/train/test_resume.py",
    "tests/train/test_zero.py",
    "tests/interaction/test_triton.py",
    "tests/data/test_translate.py",
    "tests/models/test_compiled.py",
    "tests/export/test_onnx.py",
    "tests/train/test_launchers.py",
    "tests/data/test_download_faults.py",
    "tests/train/test_plan.py",
    "tests/data/test_ingest.py",
    "tests/bench/test_gpu_check.py",
    "tests/test_docs.py",
    "tests/test_imports.py",
    "tests/data/test_plan.py",
    "tests/train/test_fleet.py",
    "tests/train/test_precision.py",
    "tests/workflow/test_dag.py",
    "tests/workflow/test_study.py",
    "tests/test_wrong_commands.py",
    "tests/index/test_index.py",
    "tests/train/test_warm_start_sources.py",
    "tests/cluster/test_two_hosts.py",
    "tests/export/test_full_disk.py",
    "tests/data/test_text_rules.py",
    "tests/test_quickstart.py",
    "tests/test_wheel.py",
    "tests/export/test_documented.py",
    "tests/export/test_hf.py",
    "tests/export/test_multi_vector.py",
    "tests/eval/test_parity.py",
    "tests/train/test_adapters.py",
    "tests/data/test_ingest_killed.py",
    "tests/data/test_kill_lists.py",
    "tests/train/test_host_memory.py",
    "tests/data/test_demo_corpus.py",
    "tests/data/test_engines.py",
    "tests/eval/test_models.py",
    "tests/data/test_loader_faults.py",
    "tests/train/test_resume_choice.py",
    "tests/report/test_tables.py",
    "tests/test_readme.py",
    "tests/train/test_pooled_term.py",
    "tests/data/test_full_disks.py",
    "tests/test_cli.py",
    "tests/study/test_efficiency.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """Listen to Ctrl-C, and let compiled modules be written.

    A shell ignores Ctrl-C in what it starts in the background, and a test's processes inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # As in the Makefile, for tests that are run without it: what processes import is to be compiled once.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # Threads of processes that tests start should not spin while they wait: the other tests need the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # torch's compiler would start processes that import PyTorch, for kernels that are few and small.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    if gone := [file for file in LONGEST_FIRST if not (ROOT / file).is_file()]:
        raise pytest.UsageError(f"tests/conftest.py names files that are not there: {', '.join(gone)}")


def pytest_collection_finish() -> None:
    """Let the garbage collector leave alone what all tests have imported: looking at it takes a tenth of a second."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the tests so that in `make test` no worker is left alone with a long file; without workers keep pytest's
    order."""
    if hasattr(config, "workerinput"):
        place = {file: number for number, file in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))
