"""Restrict the addresses that a list of URLs may reach: public hosts, and one folder if the card names it.

A list from elsewhere cannot be trusted: its URLs, their redirections, and the names that a server of
theirs resolves may point at this machine, at its network, or at a cloud's metadata service. So the address itself is
checked, after the name is resolved and before the connection is made to that very address.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Refused even where this Python's tables call them public: clouds serve credentials and settings there.
RESERVED = [
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's wire server
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata
        "192.88.99.0/24",  # relays of 6to4
        "64:ff9b:1::/48",  # a network's own translation to IPv4
        "::/96",  # an IPv4 address with zeros before it
        "::ffff:0:0:0/96",  # translated IPv4 (SIIT)
        "2001::/23",  # protocol assignments
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fec0::/10",  # site-local
    )
]


class Refused(OSError):
    """Error for a URL that leads where the card does not allow; ``reason`` is its bucket in the funnel."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Access:
    """Permissions beyond the public internet."""

    private_hosts: bool = False  # loopback, link-local and private addresses
    folder: str | None = None  # `file:` URLs below this folder
    contact: str | None = None  # whom a webmaster may ask, in the user agent
    per_host: int = 8  # threads that ask one host at once

    def check_address(self, address: str, host: str) -> None:
        """Raise Refused unless a connection to this address (of the host ``host``) is allowed."""
        if not self.private_hosts and not is_public(address):
            raise Refused(
                "private_address",
                f"{host} is {address}, not an address of the public internet (allow_private_hosts in the card)",
            )

    def check_name(self, host: str) -> None:
        """Check likewise a host that a proxy will resolve; only a host that is itself an address can be judged."""
        if host == "localhost" or host.endswith(".localhost"):
            self.check_address("127.0.0.1", host)
        try:
            self.check_address(socket.inet_ntoa(socket.inet_aton(host)), host)  # 127.1 and 2130706433, too
        except Refused:
            raise
        except OSError:
            try:
                ipaddress.ip_address(host)
            except ValueError:
                return
            self.check_address(host, host)

    def check_file(self, path: str) -> None:
        """Raise Refused unless ``path`` is in the folder."""
        folder = os.path.abspath(self.folder or "")
        if self.folder is None or os.path.commonpath([folder, os.path.abspath(path)]) != folder:
            raise Refused("outside", f"{path} is not in {self.folder}")


PUBLIC = Access()


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the public internet, even if another address is wrapped in it."""
    ip: Any = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        wrapped = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if wrapped is None and ip in NAT64:
            wrapped = ipaddress.ip_address(int(ip) & 0xFFFFFFFF)
        if wrapped is not None:
            ip = wrapped
    reserved = any(ip in network for network in RESERVED if network.version == ip.version)
    return bool(ip.is_global and not ip.is_multicast and not reserved)


def local_root(root: str | None) -> str | None:
    """Return a card's image_root if it is a folder of this machine, not a host's; its `file:` URLs may be read."""
    if root is None or root.startswith("file:"):
        return root and url2pathname(urlsplit(root).path)
    return None if "://" in root else os.path.abspath(root)
