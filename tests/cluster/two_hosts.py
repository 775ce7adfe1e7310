"""Two hosts on one machine: network namespaces that a pair of virtual Ethernet cards joins. Needs root and iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

ADDRESSES = ("10.213.77.1", "10.213.77.2")
CARD = "cable0"  # the name of either end, each on its own host
# for gloo, which cannot resolve the hosts' names
INTERFACE = {"GLOO_SOCKET_IFNAME": CARD, "TP_SOCKET_IFNAME": CARD}


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, timeout=60)


def why_not() -> str | None:
    """Return why no namespaces can be made here, in one line; None if they can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "two hosts need root and iproute2"
    name = f"filip-try-{os.getpid()}"
    made = ip("netns", "add", name)
    ip("netns", "del", name)
    return f"no network namespace can be made here: {made.stderr.strip()}" if made.returncode else None


class TwoHosts:
    """Two hosts, which ``with`` makes and removes. Host 0 has the first of ADDRESSES, host 1 the second."""

    def __init__(self) -> None:
        self.names = [f"filip{number}-{os.getpid()}" for number in (0, 1)]

    def __enter__(self) -> TwoHosts:
        for name in self.names:
            self._do("netns", "add", name)
        ends = [["name", CARD, "netns", name] for name in self.names]
        self._do("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for name, address in zip(self.names, ADDRESSES, strict=True):
            self._do("-n", name, "addr", "add", f"{address}/24", "dev", CARD)
            self._do("-n", name, "link", "set", "lo", "up")
            self._do("-n", name, "link", "set", CARD, "up")
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for name in self.names:
            ip("netns", "del", name)  # the cards go with it

    def start(self, host: int, command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command on a host; what it prints goes to ``log``."""
        command = ["ip", "netns", "exec", self.names[host], *command]
        with open(log, "ab") as out:
            return subprocess.Popen(command, env={**environment, **INTERFACE}, stdout=out, stderr=out)

    def shell(self, folder: Path) -> Path:
        """Write an ``ssh`` that runs a command on an address's host, with an empty environment; return its folder."""
        folder.mkdir()
        program = folder / "ssh"
        program.write_text(
            "#!/bin/sh\nwhile :; do case $1 in -o) shift 2;; -*) shift;; *) break;; esac; done\n"
            f"case $1 in {ADDRESSES[0]}) name={self.names[0]};; *) name={self.names[1]};; esac; shift\n"
            'exec ip netns exec $name env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME="$HOME" sh -c "$*"\n'
        )
        program.chmod(0o755)
        return folder

    def cut(self) -> None:
        """Pull the cable."""
        self._do("-n", self.names[0], "link", "set", CARD, "down")

    def mend(self) -> None:
        self._do("-n", self.names[0], "link", "set", CARD, "up")

    def received(self, host: int) -> int:
        """Return the bytes that a host has received over the cable."""
        command = ["ip", "netns", "exec", self.names[host], "cat", "/proc/net/dev"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        line = next(line for line in shown.splitlines() if line.strip().startswith(f"{CARD}:"))
        return int(line.split(":")[1].split()[0])

    def timeouts(self) -> int:
        """Return how often a connection of either host has waited in vain for an answer."""
        total = 0
        for name in self.names:
            command = ["ip", "netns", "exec", name, "cat", "/proc/net/netstat"]
            shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
            names, values = (line.split() for line in shown.splitlines() if line.startswith("TcpExt:"))
            total += int(values[names.index("TCPTimeouts")])
        return total

    @staticmethod
    def _do(*words: str) -> None:
        done = ip(*words)
        assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
