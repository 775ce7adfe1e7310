"""Ports for servers and process groups of tests."""

import random
import socket
from pathlib import Path

_GIVEN_TO_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port(first: int = 10000, last: int = 32000) -> int:
    """Return a port that nobody listens on, if possible below those that the system gives to connections.

    Else a connection may take it before the server listens.
    """
    if _GIVEN_TO_CONNECTIONS.exists():
        lowest = int(_GIVEN_TO_CONNECTIONS.read_text().split()[0])
        last = min(last, lowest) if lowest > first else last
    while True:
        port = random.randrange(first, last)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
