"""Run a command while the demo corpus is being served, and stop serving when it ends, however it ends.

python -m filip.data.demo.serving results/demo/corpus 8765 -- python -m filip.data.download ...
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

from filip.data.demo.server import CorpusServer, say, summary
from filip.errors import UserError

USAGE = "usage: python -m filip.data.demo.serving CORPUS_FOLDER PORT -- COMMAND [ARGUMENT ...]"


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


def main(arguments: list[str]) -> int:
    if len(arguments) < 4 or arguments[2] != "--" or not arguments[1].isdigit():
        print(USAGE, file=sys.stderr)
        return 2
    try:
        return serve_while(Path(arguments[0]), int(arguments[1]), arguments[3:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
