"""Many cases on gloo ranks, started once, and a case that fails does not hide the others.

def cases(ranks: int) -> Cases: return {"gather": partial(compare, exchange="gather"), ...}

failures = run_cases(cases, 2, tmp_path)      # {"gather": "", ...}: a traceback where a rank failed
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from tests.support.launched_ranks import Ranks

Cases = dict[str, Callable[[int, int], None]]  # each is called with (rank, ranks), on every rank
# A rank that fails between two collectives leaves the others waiting in the second; so they fail too.
PATIENCE = timedelta(seconds=60)


def run_cases(cases: Callable[[int], Cases], ranks: int, folder: Path) -> dict[str, str]:
    """Run all of ``cases(ranks)`` in order; for each, the traceback of the first rank that failed, or "".

    ``cases`` must be a function of a module, which the ranks import.
    """
    started = Ranks(ranks, [__file__, cases.__module__, cases.__name__, str(folder)], folder / "log")
    assert started.wait(500) == [0] * ranks, started.text()[-3000:]
    outcomes = [json.loads((folder / f"outcome-{rank}.json").read_text()) for rank in range(ranks)]
    return {name: next((o[name] for o in outcomes if o[name]), "") for name in cases(ranks)}


def _run(rank: int, cases: Callable[[int], Cases], ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks, timeout=PATIENCE
    )
    outcome = {}
    for name, case in cases(ranks).items():
        try:
            case(rank, ranks)
            outcome[name] = ""
        except Exception:
            outcome[name] = f"rank {rank} of {ranks}:\n{traceback.format_exc()}"
    (Path(folder) / f"outcome-{rank}.json").write_text(json.dumps(outcome))
    dist.destroy_process_group()


if __name__ == "__main__":
    module, name, results = sys.argv[1:]
    rank, world = (int(os.environ[key]) for key in ("RANK", "WORLD_SIZE"))
    _run(rank, getattr(importlib.import_module(module), name), world, results)
