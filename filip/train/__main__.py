"""Start with ``deepspeed --module filip.train …``, ``torchrun -m filip.train …`` or ``python -m``."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from filip.train.launcher_env import (
    EXIT_CODE_FILE,
    NOT_FINITE,
    STOPPED_BY_SIGNAL,
    USERS_MISTAKE,
    MachineError,
    environment_rank,
    lost_contact,
    this_rank,
)

if TYPE_CHECKING:
    from filip.train.config import TrainConfig


def train(config: TrainConfig) -> None:
    """Train FILIP, or the CLIP baseline with the same encoders, with DeepSpeed.

    deepspeed --num_gpus 2 --module filip.train experiment=demo run_dir=DIR out=M.safetensors \\
        data.sources='[{shards: DIR, captions: DIR}]'

    experiment=demo|ablation|base|large|finetune_coco|… (filip/conf/experiment) is a complete setting, model=… a size;
    options after them win. A run that was stopped continues when it is started again. docs/training.md is the manual.
    """
    from filip.cli.command import compose_config
    from filip.train import loop  # imports torch's compiler and more: not for --help

    paper = compose_config(type(config), ["experiment=base", "run_dir=-", "out=-"], "train")
    loop.train(config.check(), paper)


def as_options(arguments: list[str]) -> list[str]:
    """Return ``--deepspeed --deepspeed_config FILE``, as DeepSpeed's users write it, as ``deepspeed=FILE``."""
    line = "\0".join(argument for argument in arguments if argument != "--deepspeed")
    return re.sub(r"--deepspeed_config[\0=]", "deepspeed=", line).split("\0") if line else []


def main(arguments: list[str]) -> None:
    """Run the command. Of a mistake that all ranks find before the first step only the first one prints the message."""
    from filip.cli.command import run_command
    from filip.train.config import TrainConfig

    main_rank = environment_rank() == 0
    try:
        run_command(train, TrainConfig, "train", as_options(arguments), quiet=not main_rank)
    except SystemExit:
        if not main_rank:
            time.sleep(2)  # launchers kill the others at the first failure: give the first rank time to print
        raise


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """Leave at a signal that comes during the start-up, when there is nothing to save and a step may be far away.

    filip.train.loop takes the signals over before the first step.
    """
    os.write(sys.stderr.fileno(), f"{signal.Signals(number).name}: stopped before the first step\n".encode())
    leave(STOPPED_BY_SIGNAL, flush=False)


def leave(code: int, flush: bool = True) -> None:
    """Exit without tearing down threads and process groups, which may hang or complain after the work is done.

    A launcher kills the other ranks at the first failure and then returns some signal's code. So the first rank also
    writes its exit code to the file that ``FILIP_EXIT_CODE_FILE`` names, unless another has found a mistake before.
    """
    if flush:  # not in a signal handler, which may have interrupted it
        sys.stdout.flush()
        sys.stderr.flush()
    place = os.environ.get(EXIT_CODE_FILE)
    if place and (code == USERS_MISTAKE or (environment_rank() == 0 and not Path(place).exists())):
        Path(place).write_text(str(code))
    os._exit(code)


if __name__ == "__main__":
    for stopping in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(stopping, stop_at_once)
    try:
        main(sys.argv[1:])
        exit_code = 0
    except SystemExit as stopped:
        exit_code = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException as error:  # no waiting for threads of a broken process group
        exit_code = error.code if isinstance(error, MachineError) else 1
        sentence = f"{this_rank()}: {error}" if isinstance(error, MachineError) else lost_contact(error)
        if sentence is None:  # a bug of ours, or a device that fails
            traceback.print_exc()
            said = (str(error).strip() or "no message").splitlines()[0]
            sentence = f"{this_rank()}: {type(error).__name__}: {said}"
        if exit_code != NOT_FINITE or environment_rank() == 0:  # which all ranks find alike
            # print's second write for the line's end lets other ranks in between
            sys.stderr.write(f"error: {sentence}\n")
    leave(exit_code)
