"""ssh between two hosts: an sshd on each, and an ``ssh`` that has a key for both and reads no settings of the user."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path
from types import TracebackType

from tests.cluster.two_hosts import ADDRESSES, TwoHosts
from tests.support.debian import why_not_installed
from tests.support.launched_ranks import environment

SSHD = "/usr/sbin/sshd"  # has to be started by its whole path


def why_not() -> str | None:
    """Say why ssh between hosts is not possible here, in one line; None if it is."""
    return why_not_installed((SSHD, "ssh", "ssh-keygen", "pdsh"), ("openssh-server", "openssh-client", "pdsh"))


class SecureShell:
    """The hosts' ssh daemons, which ``with`` starts and stops. ``bin``, to be first in the PATH, has the ``ssh``."""

    def __init__(self, hosts: TwoHosts, folder: Path) -> None:
        self.hosts, self.folder, self.bin = hosts, folder, folder / "bin"
        self.log = folder / "sshd.log"
        self.daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> SecureShell:
        self.bin.mkdir(parents=True)
        for name in ("host_key", "user_key"):
            make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
            subprocess.run(make, check=True, timeout=60)
        (self.folder / "sshd_config").write_text(
            f"HostKey {self.folder}/host_key\nAuthorizedKeysFile {self.folder}/user_key.pub\nPidFile none\n"
            "PermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\n"  # modes: of folders of the tests
        )
        (self.folder / "ssh_config").write_text(
            f"IdentityFile {self.folder}/user_key\nUserKnownHostsFile /dev/null\nStrictHostKeyChecking no\n"
            "BatchMode yes\nLogLevel ERROR\n"
        )
        ssh = self.bin / "ssh"
        ssh.write_text(f'#!/bin/sh\nPATH=${{PATH#*:}} exec ssh -F {self.folder}/ssh_config "$@"\n')
        ssh.chmod(0o755)
        Path("/run/sshd").mkdir(exist_ok=True)  # where it shuts away the part that speaks with strangers
        for host in (0, 1):
            command = [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]
            self.daemons.append(self.hosts.start(host, command, environment(), self.log))
        self._wait()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for daemon in self.daemons:
            daemon.terminate()
        for daemon in self.daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()

    def _wait(self) -> None:
        """Wait until both answer the first host."""
        path = f"{self.bin}:{environment()['PATH']}"
        for address in ADDRESSES:
            for _ in range(100):
                tried = self.hosts.start(0, ["ssh", address, "true"], environment(PATH=path), self.log)
                if tried.wait(60) == 0:
                    break
                time.sleep(0.2)
            else:
                raise AssertionError(f"no answer from {address}: {self.log.read_text()[-2000:]}")
