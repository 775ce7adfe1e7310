"""A real Slurm on one machine: slurmctld, munged and one slurmd per virtual node, as root and without systemd.

    python -m tests.cluster.one_host_slurm FOLDER [NODES]     # starts it, prints sinfo, stops it at Ctrl-C

The daemons come from Debian's packages. All virtual nodes share the machine's address and differ in their ports; each
claims as many cores, GPUs (device files that are /dev/null) and as much memory as it is told to. They end with the
process that started them, however it ends: a guardian in a session of its own waits for that.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.conftest import MARK

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
DAEMONS = ("slurmctld", "slurmd", "munged")
PROGRAMS = (*DAEMONS, "sbatch")
CONTROLLER_PORT, FIRST_NODE_PORT = 16817, 17000
# Clients look there. Snakemake's job step drops SLURM_CONF from the environment of its job.
DEFAULT_PLACE = Path("/etc/slurm")
FILES = ("slurm.conf", "cgroup.conf", "gres.conf")
FOLDER_PREFIX = "one-host-slurm"  # name of the folder with the files of such a Slurm
ROOT = Path(__file__).resolve().parents[2]


def why_not() -> str | None:
    """Return why no Slurm can be started here, in one line; None if it can."""
    if os.geteuid() != 0:
        return "the one-host Slurm needs root"
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        return f"no {' or '.join(missing)} here: apt-get install {' '.join(PACKAGES)}"
    if any((DEFAULT_PLACE / name).exists() for name in FILES):
        return f"{DEFAULT_PLACE} has a configuration: this machine belongs to a cluster"
    return None


def stop_daemons(folder: Path) -> None:
    """Stop what lives in this folder, jobs included, and remove the links to it."""
    stop(folder / "run/slurmctld.pid", *folder.glob("run/slurmd-*.pid"))
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "slurmstepd":  # no other Slurm is on this machine
            with contextlib.suppress(psutil.NoSuchProcess):
                for started in (*process.children(recursive=True), process):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        started.kill()
    stop(folder / "run/munged.pid")
    for name in FILES:  # a client without its controller waits: leave no configuration behind
        place = DEFAULT_PLACE / name
        if place.is_symlink() and place.readlink() == folder / name:
            place.unlink()


def guard(folder: Path) -> None:
    """Wait for the end of the process that holds the other end of our input, and stop the daemons then."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()
    stop_daemons(folder)


class OneHostSlurm:
    """A running cluster; ``with`` starts and stops it. Its node names are node0, node1, …"""

    def __init__(self, folder: Path, nodes: int = 4, cpus: int = 8, gpus: int = 8, memory_mb: int = 600_000):
        self.folder, self.nodes = folder / FOLDER_PREFIX, nodes
        self.shape = f"CPUs={cpus} RealMemory={memory_mb} Gres=gpu:{gpus}"
        self.gpus = gpus

    # ---- start and stop ------------------------------------------------------------------------------

    def __enter__(self) -> OneHostSlurm:
        for name in ("run", "log", "state", "spool", "munge", "devices"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.cluster.one_host_slurm", "guard", str(self.folder)]
        # without the mark by which the tests' own guardian would end it first
        variables = {name: value for name, value in os.environ.items() if name != MARK}
        self.guardian = subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, cwd=ROOT, start_new_session=True
        )
        self._write_configuration()
        try:
            key = self.folder / "munge" / "munge.key"
            key.write_bytes(os.urandom(1024))
            key.chmod(0o400)
            key.parent.chmod(0o700)
            options = {"key-file": key, "socket": self.folder / "run/munge.socket", "pid-file": self._pid("munged")}
            options |= {"log-file": self.folder / "log/munged.log", "seed-file": self.folder / "munge/munged.seed"}
            # --force: it would refuse folders that others may write to, such as /tmp
            subprocess.run(["munged", "--force", *(f"--{k}={v}" for k, v in options.items())], check=True)
            self.start_controller()
            for node in range(self.nodes):
                self.start_node(node)
            for node in range(self.nodes):  # stopped by these files
                self.wait_until(self._pid(f"slurmd-node{node}").exists)
            self.wait_until(lambda: self.idle() >= self.nodes, 120)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.guardian.communicate()  # closes its input, and waits for it

    def start_controller(self) -> None:
        subprocess.run(["slurmctld", "-f", str(self.folder / "slurm.conf")], check=True)

    def kill_controller(self) -> None:
        """Kill it as ``kill -9`` does, after it has saved, which it does every few seconds; a new one knows what was
        saved."""
        before, saved = time.time(), self.folder / "state/job_state"
        for job, state in self.jobs().items():  # a change, which has to be saved
            if state in ("PENDING", "RUNNING"):
                self.ask("scontrol", "update", f"JobId={job}", f"AdminComment={before}")

        def is_saved() -> bool:
            with contextlib.suppress(FileNotFoundError):  # the old one goes before the new one comes
                return saved.stat().st_mtime > before
            return False

        self.wait_until(is_saved)
        stop(self._pid("slurmctld"), number=signal.SIGKILL)

    def start_node(self, node: int) -> None:
        (self.folder / "spool" / f"node{node}").mkdir(exist_ok=True)
        self._pid(f"slurmd-node{node}").unlink(missing_ok=True)
        subprocess.run(["slurmd", "-f", str(self.folder / "slurm.conf"), "-N", f"node{node}"], check=True)

    def kill_node(self, node: int) -> None:
        """Kill it like a power cut: the daemon, its step daemons and what they started end; none reports the others."""
        result = {psutil.Process(int(self._pid(f"slurmd-node{node}").read_text()))}
        for process in psutil.process_iter(["environ"]):
            if (process.info["environ"] or {}).get("SLURMD_NODENAME") == f"node{node}":
                result.add(process)
                with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                    parent = process.parent()
                    if parent is not None and parent.name() == "slurmstepd":  # which hides its environment
                        result.add(parent)
        for act in (psutil.Process.suspend, psutil.Process.kill):
            for process in result:
                with contextlib.suppress(psutil.NoSuchProcess):
                    act(process)

    def set_nodes(self, names: str, state: str) -> None:
        """Set a state as administrators do: DRAIN (no new jobs), RESUME; DOWN lasts until the node's daemon reports."""
        command = ["scontrol", "update", f"NodeName={names}", f"State={state}", "Reason=test"]
        subprocess.run(command, check=True, timeout=60)

    def _pid(self, daemon: str) -> Path:
        return self.folder / "run" / f"{daemon}.pid"

    def _write_configuration(self) -> None:
        host, last = socket.gethostname().split(".")[0], self.nodes - 1
        ports = f"[{FIRST_NODE_PORT}-{FIRST_NODE_PORT + last}]" if last else str(FIRST_NODE_PORT)
        names = f"node[0-{last}]" if last else "node0"
        text = {
            # CR_CPU counts cores and not memory; no cgroups, no binding and no accounting: this is one machine
            "slurm.conf": f"""\
ClusterName=onehost
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={CONTROLLER_PORT}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={self.folder}/run/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={self.folder}/state
SlurmctldPidFile={self._pid("slurmctld")}
SlurmctldLogFile={self.folder}/log/slurmctld.log
SlurmdSpoolDir={self.folder}/spool/%n
SlurmdPidFile={self.folder}/run/slurmd-%n.pid
SlurmdLogFile={self.folder}/log/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
ReturnToService=2
MinJobAge=3600
KillWait=15
JobRequeue=1
GresTypes=gpu
NodeName={names} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports} {self.shape} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE OverTimeLimit=0 State=UP
""",
            "cgroup.conf": "CgroupPlugin=disabled\n",
            "gres.conf": f"Name=gpu File={self.folder}/devices/gpu[0-{self.gpus - 1}]\n",
        }
        for gpu in range(self.gpus):  # Slurm wants a character device for each
            device = self.folder / "devices" / f"gpu{gpu}"
            if not device.exists():
                os.mknod(device, 0o020666, os.makedev(1, 3))
        DEFAULT_PLACE.mkdir(exist_ok=True)
        for name, content in text.items():
            (self.folder / name).write_text(content)
            (DEFAULT_PLACE / name).unlink(missing_ok=True)  # a link that leads nowhere, left by a killed test
            (DEFAULT_PLACE / name).symlink_to(self.folder / name)

    # ---- questions -----------------------------------------------------------------------------------

    def ask(self, *command: str, env: dict[str, str] | None = None) -> str:
        """Return the standard output of a client command, stripped; also of one that fails."""
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env).stdout.strip()

    def idle(self) -> int:
        """Return how many nodes have nothing to do."""
        return len(self.ask("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").splitlines())

    def jobs(self) -> dict[str, str]:
        """Return {job: state} of all jobs that Slurm remembers."""
        lines = self.ask("squeue", "-h", "--states=all", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def state(self, job: str) -> str:
        return self.jobs().get(job, "")

    def wait_for(self, job: str, *states: str, timeout: float = 60) -> str:
        """Wait until the job is in one of ``states``, and return that state."""
        self.wait_until(lambda: self.state(job) in states, timeout, lambda: f"job {job}: {self.jobs()}")
        return self.state(job)

    @staticmethod
    def wait_until(
        true, timeout: float = 30, about=lambda: "the cluster did not become ready", every: float = 0.2
    ) -> None:
        """Wait until ``true()`` holds; raise AssertionError with ``about()`` after ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while not true():
            assert time.monotonic() < end, about()
            time.sleep(every)


def stop(*pid_files: Path, number: signal.Signals = signal.SIGTERM) -> None:
    """End the processes that pid files name, and wait for them: five seconds, then kill them."""
    processes = []
    for file in pid_files:
        with contextlib.suppress(OSError, ValueError, psutil.NoSuchProcess):
            process = psutil.Process(int(file.read_text()))
            if process.name() in DAEMONS:  # and not another program that got its number later
                processes.append(process)
                process.send_signal(number)
    _, left = psutil.wait_procs(processes, timeout=5)
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=5)
    for file in pid_files:
        file.unlink(missing_ok=True)


if __name__ == "__main__":
    if sys.argv[1] == "guard":
        guard(Path(sys.argv[2]))
        sys.exit()
    if reason := why_not():
        sys.exit(reason)
    with OneHostSlurm(Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 4) as cluster:
        print(cluster.ask("sinfo", "-N", "-l"), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
