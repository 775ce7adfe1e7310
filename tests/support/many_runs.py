"""Several trainings one after the other in the same ranks: imports and start-up are paid once.

    python many_runs.py '[["-m", "filip.train", "a=b", ...], ...]'

Prints the exit code of each. Among the overrides, ``stop_after=N`` sends the last rank SIGUSR1 after step N, so that
all stop with step N + 1; the weights of that step, gathered from the engine, go to ``run_dir/at_stop.safetensors``.
``poison_at=N`` gives the first rank pixels that are not numbers in step N and the two after it, ``nan_at=N`` the last
rank one such pixel in step N; then ``run_dir/digests.json`` has a digest of the weights after each step.
``fault=NAME`` puts tests.support.broken_kernels with that fault in place of the native kernels.
"""

import gc
import json
import os
import signal
import sys
from hashlib import sha256
from pathlib import Path

from filip.cli.command import compose_config
from filip.common.errors import UserError
from filip.models import save_model
from filip.train import loop, step
from filip.train.config import TrainConfig
from filip.train.engine import gather_to_main
from filip.train.launcher_env import MachineError
from filip.train.optimizers import OPTIMIZERS
from late_interaction.backends import BACKENDS, BackendEntry
from tests.support import broken_kernels
from tests.support.training import MOMENTUM

OPTIMIZERS["momentum"] = MOMENTUM


def run(overrides: list[str]) -> int:
    names = ("stop_after", "poison_at", "nan_at", "fault")
    special = dict(o.split("=") for o in overrides if o.startswith(tuple(f"{name}=" for name in names)))
    overrides = [o for o in overrides if "=" in o and o.partition("=")[0] not in special]
    stop_after, poison_at, nan_at = (int(special.get(name, -1)) for name in names[:3])
    native, broken_kernels.fault, broken_kernels.backwards = BACKENDS["native"], special.get("fault"), 0
    if broken_kernels.fault:
        BACKENDS["native"] = BackendEntry(broken_kernels.__name__, "cpu")
    take_step, save_checkpoint, poisoned, digests = loop.take_step, step.save_checkpoint, [], []

    def watched(run, batches):  # type: ignore[no-untyped-def]
        number, is_last = run.state.step + 1, run.ranks.rank == run.ranks.world_size - 1
        if number == stop_after + 1 and is_last:
            os.kill(os.getpid(), signal.SIGUSR1)
        if 0 < poison_at <= number and run.ranks.is_main and len(poisoned) < 3:
            poisoned.append(True)
            batches = ({**batch, "pixels": batch["pixels"].float() * float("nan")} for batch in batches)
        if number == nan_at and is_last:
            batches = map(one_nan, batches)
        take_step(run, batches)
        if nan_at > 0:
            digests.append(digest(gather_to_main(run.engine, run.ranks)))
            if run.ranks.is_main:
                Path(run.config.run_dir, "digests.json").write_text(json.dumps(digests))

    def saving(engine, state, folder, settings, ranks):  # type: ignore[no-untyped-def]
        if state.step == stop_after + 1:
            weights = gather_to_main(engine, ranks)
            if ranks.is_main:
                save_model(f"{folder.parent}/at_stop.safetensors", engine.model, state=weights)
        return save_checkpoint(engine, state, folder, settings, ranks)

    loop.take_step, step.save_checkpoint = watched, saving
    try:
        loop.train(compose_config(TrainConfig, overrides, "train"))
    except UserError as error:
        print(f"error: {error}", flush=True)
        return error.exit_code
    except MachineError as error:
        print(f"error: {error}", flush=True)
        return error.code
    except SystemExit as stopped:
        return int(stopped.code or 0)
    finally:
        loop.take_step, step.save_checkpoint = take_step, save_checkpoint
        BACKENDS["native"] = native
        gc.collect()
    return 0


def one_nan(batch):  # type: ignore[no-untyped-def]
    pixels = batch["pixels"].float()
    pixels[0, 0, 0, 0] = float("nan")
    return {**batch, "pixels": pixels}


def digest(weights):  # type: ignore[no-untyped-def]
    return sha256(b"".join(weights[name].numpy().tobytes() for name in sorted(weights))).hexdigest()


if __name__ == "__main__":
    ports = iter(os.environ["NEXT_PORTS"].split(","))
    for number, arguments in enumerate(json.loads(sys.argv[1])):
        if number:
            os.environ["MASTER_PORT"] = next(ports)
        # One write for text and line end: those of two ranks must not mix, as print's two writes can.
        os.write(1, f"run {number} exit {run(arguments)}\n".encode())
    sys.stdout.flush()
    os._exit(0)
