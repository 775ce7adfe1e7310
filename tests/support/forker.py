"""Starts processes by forking: the imports are done once, and a rank is there in 0.1 s instead of several seconds.

    python tests/support/forker.py SOCKET

Each has its own environment, folder, log, signals and exit code; only the memory of the modules is shared until someone
writes to it. Nothing has run in here: no thread, no process group, no random number. All workers of pytest share it.

Reads requests from each connection, one JSON object per line: arguments (as after ``python``), environment, folder, log
and errors (files to append to), and exit, the file that will hold the exit code. Answers each with the process id. When
a connection closes, its processes are killed; when standard input does, all are, and this ends.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import traceback
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def import_everything() -> None:
    """Import what a training does, in the same order, and then what other commands do that tests start and kill.

    All but the package ``workflow``, which Snakemake takes from the folder of its Snakefile.
    """
    sys.modules.setdefault("wandb", None)  # type: ignore[arg-type]  # as filip.train.__main__
    import deepspeed.module_inject.auto_ep_layer
    import deepspeed.ops.op_builder.all_ops
    import tensorboard  # noqa: F401
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    from filip import tokenizer
    from filip.light_imports import light_imports

    with light_imports():
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    import snakemake.cli  # noqa: F401

    import filip.command
    import filip.data.ingest
    import filip.data.prepare
    import filip.data.score
    import filip.data.select
    import filip.data.text_rules
    import filip.data.translate
    import filip.index.build
    import filip.study.check
    import filip.train.loop
    from filip.train.config import TrainConfig

    tokenizer.prepare()
    tokenizer.token_texts()
    # the files that trainings in tests have in common, which Hydra composes once
    places = ["run_dir=-", "out=-"]
    filip.command.compose_config(TrainConfig, ["experiment=demo", "model=tiny", *places], "train")


@dataclass
class Client:
    connection: socket.socket
    unread: bytes = b""
    children: dict[int, str] = field(default_factory=dict)  # by process id: where the exit code goes

    def take(self) -> bool:
        """Start what was asked for. Return False, and kill what was started, if the client has left."""
        arrived = self.connection.recv(1 << 16)
        if not arrived:
            self.kill()
            return False
        *lines, self.unread = (self.unread + arrived).split(b"\n")
        for line in lines:
            request = json.loads(line)
            pid = os.fork()
            if not pid:
                become(request)
            self.children[pid] = request["exit"]
            self.connection.sendall(f"{pid}\n".encode())
        return True

    def kill(self) -> None:
        for pid in self.children:
            os.kill(pid, signal.SIGKILL)

    def reap(self) -> None:
        """Write the exit codes of those that have ended (negative: the signal that killed it)."""
        for pid, place in list(self.children.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self.children[pid]
                part = Path(f"{place}.part")
                part.write_text(str(os.waitstatus_to_exitcode(status)))
                part.rename(place)


def become(request: dict[str, Any]) -> None:
    """Become the process that was asked for. Does not return."""
    code = 1
    os.setpgid(0, 0)  # so that a test can signal a rank with its loader's workers, as schedulers do
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for source, target in ((request["log"], 1), (request["errors"], 2)):
            os.dup2(os.open(source, os.O_WRONLY | os.O_APPEND), target)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        first, *rest = request["arguments"]
        if first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif first == "-c":
            sys.argv = [first, *rest[1:]]
            sys.modules["__main__"] = main_module = types.ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), main_module.__dict__)
        else:
            sys.argv = [first, *rest]
            runpy.run_path(first, run_name="__main__")
        code = 0
    except SystemExit as stopped:
        if isinstance(stopped.code, str):
            print(stopped.code, file=sys.stderr)
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    sys.path[0] = str(Path(__file__).parents[2])  # as in pytest, instead of this folder
    import_everything()
    # for all of pytest, which closes standard input when it ends
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # the garbage collector of what is forked neither looks at nor writes to all of this
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{sys.argv[1]}.part")
    server.listen(64)
    os.rename(f"{sys.argv[1]}.part", sys.argv[1])
    waiting = selectors.DefaultSelector()
    waiting.register(0, selectors.EVENT_READ)
    waiting.register(server, selectors.EVENT_READ)
    clients: list[Client] = []
    while True:
        ready = waiting.select(0.02 if any(client.children for client in clients) else None)
        for key, _ in ready:
            if key.fileobj == 0:
                for client in clients:
                    client.kill()
                sys.exit()
            if key.fileobj is server:
                clients.append(Client(server.accept()[0]))
                waiting.register(clients[-1].connection, selectors.EVENT_READ, clients[-1])
            elif not key.data.take():
                waiting.unregister(key.data.connection)
                key.data.connection.close()
        for client in clients:
            client.reap()
        clients = [client for client in clients if client.children or client.connection.fileno() >= 0]


if __name__ == "__main__":
    main()
