"""Serve the demo corpus over HTTP on this machine, faults included, until SIGTERM or SIGINT.

``images/…`` and ``planted/…`` below ``root`` are served as files. The planted faults that no file can hold
are made here: ``planted/hang/…`` never answers, ``planted/html/…`` is a page, ``planted/cut_off/…`` closes
the connection half way. ``ready`` is written once the server listens and removed when it stops.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from filip.command import MISSING, option, run_command
from filip.data.demo.render import write_atomically
from filip.errors import UserError

HOST = "127.0.0.1"
SERVED = ("images", "planted")  # the test images are none of the downloader's business
CONTENT_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".json": "application/json"}
LOG_EVERY = 10  # seconds
IDLE = 60  # seconds until a kept-alive connection without a request is closed
PAGE = b"<!doctype html><html><head><title>Gone</title></head><body>The picture has moved.</body></html>\n"


@dataclass
class Serve:
    root: str = option(MISSING, "folder of the corpus (out= of filip.data.demo.corpus)")
    port: int = option(8765, "port on 127.0.0.1; 0 = any free one, which is then named in the ready file")
    ready: str = option(MISSING, "file that is written (JSON: url, port, pid) once the server listens")


class CorpusServer(ThreadingHTTPServer):
    """A thread per connection. ``stopping`` ends requests that hang; ``counts`` counts answers by kind."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 512  # img2dataset opens a connection for every image, from many threads

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
        """Clients that go away are no news here; anything else is a bug and keeps its trace."""
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

    def _send(
        self, status: HTTPStatus, data: bytes, content_type: str, with_body: bool, cut_off: bool = False
    ) -> None:
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
        """No line per request: ten thousand of them say less than the counters do."""


def main(config: Serve) -> None:
    """Serve the demo corpus on 127.0.0.1 until SIGTERM or SIGINT."""
    root, ready = Path(config.root), Path(config.ready)
    if not (root / "images").is_dir():
        raise UserError(
            f"no corpus at root={root}: build it with 'python -m filip.data.demo.corpus out={root}'"
        )
    server = CorpusServer(root, config.port)
    ready.unlink(missing_ok=True)  # left by a server that was killed; one that lives has the port
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stopping.set())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    port = server.server_address[1]
    ready.parent.mkdir(parents=True, exist_ok=True)
    about = {"url": f"http://{HOST}:{port}", "port": port, "pid": os.getpid()}
    write_atomically(ready, (json.dumps(about) + "\n").encode())
    say(f"serving {server.root} at http://{HOST}:{port}")
    try:
        _log_until_stopped(server)
    finally:
        server.shutdown()
        server.server_close()
        ready.unlink(missing_ok=True)
    say(f"stopped after {summary(server)}")


def _log_until_stopped(server: CorpusServer) -> None:
    told = 0
    while not server.stopping.wait(LOG_EVERY):
        total = server.counts.total()
        if total != told:
            told = total
            say(summary(server))


def summary(server: CorpusServer) -> str:
    """``1,204 requests (200: 1,190, 404: 12, hung: 2)``"""
    kinds = ", ".join(f"{kind}: {n:,}" for kind, n in sorted(server.counts.items()))
    return f"{server.counts.total():,} requests ({kinds or 'none'})"


def say(text: str) -> None:
    print(f"demo server: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main, Serve)
