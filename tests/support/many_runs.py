"""Several trainings one after the other in the same ranks: imports and start-up are paid once.

    python many_runs.py '[["-m", "filip.train", "a=b", ...], ...]'

Prints the exit code of each. Among the overrides, ``stop_after=N`` sends the last rank SIGUSR1 after step N, so that
all stop with step N + 1; the weights of that step, gathered from the engine, go to ``run_dir/at_stop.safetensors``.
``poison_at=N`` gives the first rank pixels that are not numbers in step N and the two after it.
"""

import gc
import json
import os
import signal
import sys
from dataclasses import dataclass

import torch

from filip.cli.command import compose_config
from filip.common.errors import UserError
from filip.models import save_model
from filip.train import loop
from filip.train.config import TrainConfig
from filip.train.launcher_env import MACHINE_FAILED, MachineError
from filip.train.result import gather_to_main
from filip.train.watchdog import Limits


@dataclass(frozen=True)
class Patient(Limits):
    """Two ranks keep each other waiting while other tests run, which says nothing about the training."""

    straggler_intervals: int = 1000


def run(overrides: list[str]) -> int:
    special = dict(o.split("=") for o in overrides if o.startswith(("stop_after=", "poison_at=")))
    overrides = [o for o in overrides if "=" in o and o.partition("=")[0] not in special]
    stop_after, poison_at = int(special.get("stop_after", -1)), int(special.get("poison_at", -1))
    status, one_batch, poisoned = loop.step_status, loop.one_batch, []

    def watched(run, *rest):  # type: ignore[no-untyped-def]
        if run.state.step == stop_after and run.ranks.rank == run.ranks.world_size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        if run.state.step == stop_after + 1 > 0:
            weights = gather_to_main(run.engine, run.ranks)
            if run.ranks.is_main:
                save_model(f"{run.config.run_dir}/at_stop.safetensors", run.engine.model, state=weights)
        return status(run, *rest)

    def poisoning(run, batch, *rest, **more):  # type: ignore[no-untyped-def]
        if 0 < poison_at <= run.state.step + 1 and run.ranks.is_main and len(poisoned) < 3:
            poisoned.append(True)
            batch["pixels"] = torch.full(batch["pixels"].shape, float("nan"))
        return one_batch(run, batch, *rest, **more)

    loop.step_status, loop.one_batch = watched, poisoning
    try:
        loop.train(compose_config(TrainConfig, overrides, "train"))
    except UserError as error:
        print(f"error: {error}", flush=True)
        return error.exit_code
    except MachineError as error:
        print(f"error: {error}", flush=True)
        return MACHINE_FAILED
    except SystemExit as stopped:
        return int(stopped.code or 0)
    finally:
        loop.step_status, loop.one_batch = status, one_batch
        gc.collect()
    return 0


if __name__ == "__main__":
    loop.Limits = Patient
    ports = iter(os.environ["NEXT_PORTS"].split(","))
    for number, arguments in enumerate(json.loads(sys.argv[1])):
        if number:
            os.environ["MASTER_PORT"] = next(ports)
        # One write for text and line end: those of two ranks must not mix, as print's two writes can.
        os.write(1, f"run {number} exit {run(arguments)}\n".encode())
    sys.stdout.flush()
    os._exit(0)
