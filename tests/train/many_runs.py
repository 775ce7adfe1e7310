"""Several trainings one after the other in the same ranks: imports and start-up are paid once.

    python many_runs.py '[["-m", "filip.train", "a=b", ...], ...]'

Prints the exit code of each. ``stop_after=N`` among the overrides sends this process SIGUSR1 after step N.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys

from filip.command import compose_config
from filip.errors import UserError
from filip.train import loop
from filip.train.config import TrainConfig


def run(overrides: list[str]) -> int:
    stop_after = [int(o.split("=")[1]) for o in overrides if o.startswith("stop_after=")]
    overrides = [o for o in overrides if "=" in o and not o.startswith("stop_after=")]
    facts = loop.step_facts

    def watched(run, *rest):  # type: ignore[no-untyped-def]
        if stop_after and run.state.step == stop_after[0] and run.ranks.rank == run.ranks.world_size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return facts(run, *rest)

    loop.step_facts = watched
    try:
        loop.train(compose_config(TrainConfig, overrides, "train"))
    except UserError as error:
        print(f"error: {error}", flush=True)
        return 2
    except SystemExit as stopped:
        return int(stopped.code or 0)
    finally:
        loop.step_facts = facts
        gc.collect()
    return 0


if __name__ == "__main__":
    for number, arguments in enumerate(json.loads(sys.argv[1])):
        print(f"run {number} exit {run(arguments)}", flush=True)
    sys.stdout.flush()
    os._exit(0)
