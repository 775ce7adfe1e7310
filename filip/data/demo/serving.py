"""Run a command while the demo corpus is served, and stop serving when it ends, however it ends.

filip data demo serving root=results/demo/corpus port=8765 -- filip data download ...
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from filip.command import MISSING, option, run_command
from filip.data.demo.server import CorpusServer, say, summary
from filip.errors import UserError


def serve_while(root: Path, port: int, command: list[str]) -> int:
    """Serve ``root`` on 127.0.0.1:``port`` while ``command`` runs; its exit code. UserError if the port is taken."""
    if not (root / "images").is_dir():
        raise UserError(f"no corpus in {root}: build it with 'python -m filip.data.demo.corpus out={root}'")
    server = CorpusServer(root, port)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
    child = subprocess.Popen(command)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: child.send_signal(signum))
    try:
        return child.wait()
    finally:
        server.stopping.set()
        server.shutdown()
        server.server_close()
        say(f"stopped after {summary(server)}")


@dataclass
class Serving:
    root: str = option(MISSING, "folder of the demo corpus")
    port: int = option(8765, "port on 127.0.0.1")


def main(config: Serving, command: list[str]) -> None:
    """Run a command while the demo corpus is served: ``root=CORPUS port=8765 -- COMMAND [ARGUMENT ...]``."""
    if not command:
        raise UserError("no command; give root=CORPUS port=8765 -- COMMAND [ARGUMENT ...]")
    sys.exit(serve_while(Path(config.root), config.port, command))


if __name__ == "__main__":
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    run_command(lambda config: main(config, sys.argv[split + 1 :]), Serving, argv=sys.argv[1:split])
