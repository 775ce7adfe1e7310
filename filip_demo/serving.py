"""Run a command while the demo corpus is served, faults included; serving stops when it ends, however it ends.

    filip data demo serving root=results/demo/corpus port=8765 -- filip data download ...

``images/…`` and ``planted/…`` below ``root`` are served as files. The faults that no file can hold are made here:
``planted/hang/…`` never answers, ``planted/html/…`` is a page, ``planted/cut_off/…`` closes the connection half way.
"""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.common.progress import say

HOST = "127.0.0.1"
SERVED = ("images", "planted")  # not the test images, which must not be downloaded
CONTENT_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".json": "application/json"}
IDLE = 60  # seconds until a kept-alive connection without a request is closed
PAGE = b"<!doctype html><html><head><title>Gone</title></head><body>The picture has moved.</body></html>\n"


class CorpusServer(ThreadingHTTPServer):
    """Server with a thread per connection. ``stopping`` ends requests that hang; ``counts`` counts answers by kind."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 512  # the download opens a connection for every image, from many threads

    def __init__(self, root: Path, port: int):
        self.root = root.resolve()
        self.stopping = threading.Event()
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = "is taken by another program" if error.errno == errno.EADDRINUSE else "may not be used"
            raise UserError(
                f"port {port} on {HOST} {why}: stop the other one, or choose another port with port=… "
                "(for the corpus and the server alike; in a study: demo.port)"
            ) from error

    def count(self, kind: str) -> None:
        with self._lock:
            self.counts[kind] += 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect; anything else is a bug and keeps its traceback."""
        if isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            self.count("client gone")
        else:
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive
    server_version = "demo-corpus"
    disable_nagle_algorithm = True  # headers and body are two writes: without this, 40 ms each
    timeout = IDLE
    server: CorpusServer

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        parts = [part for part in unquote(urlsplit(self.path).path).split("/") if part]
        kind = parts[1] if parts[:1] == ["planted"] and len(parts) > 1 else ""
        if kind == "hang":
            self.server.count("hung")
            self.server.stopping.wait()
            self.close_connection = True
        elif kind == "html":
            self._send(HTTPStatus.OK, PAGE, "text/html; charset=utf-8", with_body)
        elif (data := self._read(parts)) is None:
            self._send(HTTPStatus.NOT_FOUND, b"404: not found\n", "text/plain; charset=utf-8", with_body)
        else:
            content_type = CONTENT_TYPES.get(Path(parts[-1]).suffix, "application/octet-stream")
            self._send(HTTPStatus.OK, data, content_type, with_body, cut_off=kind == "cut_off")

    def _read(self, parts: list[str]) -> bytes | None:
        if not parts or parts[0] not in SERVED or ".." in parts:
            return None
        try:
            return self.server.root.joinpath(*parts).read_bytes()
        except (OSError, ValueError):  # not there, a folder, a name with a zero byte
            return None

    def _send(self, status: HTTPStatus, data: bytes, content_type: str, with_body: bool, cut_off: bool = False) -> None:
        self.server.count("cut off" if cut_off else str(status.value))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if with_body:
            self.wfile.write(data[: len(data) // 2] if cut_off else data)
        if cut_off:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Log no line per request: the counters are worth more than ten thousand lines."""


def summary(server: CorpusServer) -> str:
    """Return e.g. ``1,204 requests (200: 1,190, 404: 12, hung: 2)``."""
    kinds = ", ".join(f"{kind}: {n:,}" for kind, n in sorted(server.counts.items()))
    return f"{server.counts.total():,} requests ({kinds or 'none'})"


def serve_while(root: Path, port: int, command: list[str]) -> int:
    """Serve ``root`` on 127.0.0.1:``port`` while ``command`` runs; return its exit code.

    Raises UserError if the port is taken."""
    if not (root / "images").is_dir():
        raise UserError(f"no corpus in {root}: build it with 'python -m filip_demo.corpus out={root}'")
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
        say(f"demo server: stopped after {summary(server)}")


@dataclass
class Serving:
    root: str = option(MISSING, "folder of the demo corpus")
    port: int = option(8765, "port on 127.0.0.1", at_least=0, at_most=65535)


def main(config: Serving, command: list[str]) -> None:
    """Run a command while the demo corpus is served: ``root=CORPUS port=8765 -- COMMAND [ARGUMENT ...]``."""
    if not command:
        raise UserError("no command; give root=CORPUS port=8765 -- COMMAND [ARGUMENT ...]")
    sys.exit(serve_while(Path(config.root), config.port, command))


if __name__ == "__main__":
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    run_command(lambda config: main(config, sys.argv[split + 1 :]), Serving, argv=sys.argv[1:split])
