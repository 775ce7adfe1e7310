"""Run a study: Snakemake with the local profile, and an end to everything when a person wants one.

    python -m workflow.run demo --cores 2          # workflow/config/demo.yaml; further arguments are Snakemake's

The same as ``snakemake --configfile workflow/config/demo.yaml --profile workflow/profiles/local --cores 2``, and:
one run of a study at a time; processes and locks that a killed run has left are out of the way first; Ctrl-C,
SIGTERM and a closed terminal end all processes within five seconds, and the same command continues. In a terminal
Snakemake shows bars (``snakemake-logger-plugin-rich``), elsewhere its own lines.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import yaml

from filip.common.errors import UserError
from filip.common.files import write_json
from filip.common.progress import clock
from workflow import one_run

CONFIGS = Path(__file__).resolve().parent / "config"
LOCAL = "workflow/profiles/local"
TIMES = "times.json"  # in a study's results: how long it took from beginning to end
PATIENCE = 3.5  # seconds for jobs to save
LAST_PATIENCE = 1.0  # more, for Snakemake itself; it then waits for no job
CLUSTER_PATIENCE = 60.0  # to cancel the jobs of a cluster


def config_file(study: str) -> Path:
    """Return the config of a study, by its name or path. Raise UserError if it does not exist."""
    for path in (CONFIGS / f"{study}.yaml", Path(study)):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    raise UserError(f"there is no study {study!r} in workflow/config: known are {names}")


def read_study(config: Path) -> dict[str, Any]:
    """Return a study's config, with the name under which it keeps its results. The Snakefile reports its faults."""
    try:
        study = yaml.safe_load(config.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        study = None
    return {"study": config.stem, **(study if isinstance(study, dict) else {})}


class Runner:
    """Snakemake as a child in a separate process group, which the terminal's Ctrl-C does not reach."""

    def __init__(self, config: Path, arguments: list[str]) -> None:
        self.study = read_study(config)
        self.results = Path("results") / str(self.study["study"])
        self.local = "--profile" not in arguments
        self.command = [sys.executable, "-m", "snakemake", "--configfile", str(config)]
        self.command += ["--profile", LOCAL] if self.local else []
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and "--logger" not in arguments:
            self.command += ["--logger", "rich"]
        self.command += arguments
        self.stopped_by: int | None = None
        self.child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Run Snakemake; return its exit code, or 128 and the number of the signal that ended it."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)
        locks = one_run.take(self.results.name)
        if left := one_run.end(self._left, PATIENCE):
            _say(f"ended {left} processes that a killed run had left")
        _say(f"loading Snakemake; {self._usual_time()}")
        # The jobs are commands of this environment, whether it was activated or not.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        environment = {**os.environ, "PATH": path, one_run.HELD: "1", one_run.MARK: str(self.results.resolve())}
        started, fresh = time.monotonic(), not self.results.exists()
        self.child = subprocess.Popen(self.command, env=environment, pass_fds=locks, process_group=0)
        one_run.name_holder(self.child.pid)
        signal.signal(signal.SIGTSTP, self._pause)
        while self.child.poll() is None and self.stopped_by is None:
            time.sleep(0.1)
        if self.stopped_by is not None:
            self._stop()
            _say("\nstopped; the same command continues")
            return 128 + self.stopped_by
        one_run.end(self._left, PATIENCE)  # Snakemake may have been killed
        code = self.child.returncode
        if code < 0:
            _say(f"\nSnakemake was ended by {signal.Signals(-code).name}; the same command continues")
            return 128 - code
        if code == 0 and fresh and self.results.is_dir():
            write_json(self.results / TIMES, {"seconds": round(time.monotonic() - started)})
        return code

    def _usual_time(self) -> str:
        """Return a sentence on how long this takes: here, or where the study's config was measured."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            seconds = json.loads((self.results / TIMES).read_text(encoding="utf-8"))["seconds"]
            return f"from beginning to end this study took {clock(seconds)} here"
        return f"this study takes {self.study['takes']}" if "takes" in self.study else "nobody has timed this study"

    def _left(self) -> list[psutil.Process]:
        """Return the processes of this run other than Snakemake."""
        snakemake = self.child.pid if self.child else None
        return [process for process in one_run.processes(self.results) if process.pid != snakemake]

    def _stop(self) -> None:
        assert self.child is not None
        # Snakemake starts no more jobs then, and waits for the running ones. While it is still loading,
        # it would print a stack trace, and SIGTERM, which it does not handle yet, just ends it.
        self.child.send_signal(signal.SIGINT if self._runs_jobs() else signal.SIGTERM)
        time.sleep(0.3)
        one_run.end(self._left, PATIENCE)
        try:
            self.child.wait(LAST_PATIENCE if self.local else CLUSTER_PATIENCE)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        one_run.end(self._left, 0)

    def _runs_jobs(self) -> bool:
        """Return whether Snakemake handles SIGTERM, as it does from its first job on."""
        assert self.child is not None
        with suppress(OSError):
            status = Path(f"/proc/{self.child.pid}/status").read_text()
            return bool(int(status.partition("SigCgt:")[2].split()[0], 16) & 1 << (signal.SIGTERM - 1))
        return True

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.stopped_by is None:
            self.stopped_by = number
            with suppress(OSError):  # print is not safe inside a signal handler
                os.write(2, b"\nstopping ...\n")

    def _pause(self, number: int, _: FrameType | None) -> None:
        """Suspend the whole process tree at Ctrl-Z; ``fg`` resumes it."""
        assert self.child is not None
        os.killpg(self.child.pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.killpg(self.child.pid, signal.SIGCONT)


def _say(text: str) -> None:
    with suppress(OSError):  # the terminal is closed
        print(text, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Run the study that the first argument names."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        return Runner(config_file(arguments[0]), arguments[1:]).run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
