"""Starts ranks by forking: the imports are done once, and a rank is there in 0.1 s instead of several seconds.

Each rank is a separate process with its own environment, log, signals and exit code; only the memory of the modules
is shared until someone writes to it. Nothing has run in here: no thread, no process group, no random number.

Reads requests from standard input, one JSON object per line: arguments (as after ``python``), environment, log, and
exit, the file that will hold the exit code. Answers each with the process id. Ends, and kills, with its input.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any


def import_everything() -> None:
    """Import what a training does, in the same order."""
    sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]  # as filip.train.__main__
    import deepspeed.module_inject.auto_ep_layer
    import deepspeed.ops.op_builder.all_ops
    import tensorboard  # noqa: F401
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    from filip import tokenizer
    from filip.light_imports import light_imports

    with light_imports():
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    import filip.command
    import filip.train.loop  # noqa: F401

    tokenizer.prepare()


def become(request: dict[str, Any]) -> None:
    """Become the process that was asked for. Does not return."""
    code = 1
    os.setpgid(0, 0)  # so that a test can signal a rank with its loader's workers, as schedulers do
    try:
        for source, target in ((os.devnull, 0), (request["log"], 1), (request["log"], 2)):
            os.dup2(os.open(source, os.O_RDONLY if target == 0 else os.O_WRONLY | os.O_APPEND), target)
        os.environ.clear()
        os.environ.update(request["environment"])
        first, *rest = request["arguments"]
        if first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *rest]
            runpy.run_path(first, run_name="__main__")
        code = 0
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def reap(children: dict[int, str]) -> None:
    """Write the exit codes of those that have ended (negative: the signal that killed it)."""
    for pid, place in list(children.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            del children[pid]
            part = Path(f"{place}.part")
            part.write_text(str(os.waitstatus_to_exitcode(status)))
            part.rename(place)


def main() -> None:
    sys.path[0] = str(Path(__file__).parents[2])  # as in pytest, instead of this folder
    import_everything()
    children: dict[int, str] = {}
    unread = b""
    while True:
        readable, _, _ = select.select([0], [], [], 0.02 if children else None)
        reap(children)
        if not readable:
            continue
        arrived = os.read(0, 1 << 16)
        if not arrived:
            break
        *lines, unread = (unread + arrived).split(b"\n")
        for line in lines:
            request = json.loads(line)
            pid = os.fork()
            if not pid:
                become(request)
            children[pid] = request["exit"]
            os.write(1, f"{pid}\n".encode())
    for pid in children:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
