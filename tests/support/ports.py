"""Ports for servers and process groups of tests."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """Return a port that nobody listens on, below those that systems give to connections: none takes it in between."""
    while True:
        port = random.randrange(20000, 31000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
