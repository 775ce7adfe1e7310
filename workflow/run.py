"""Run a study: Snakemake with the local profile, and an end to everything when a person wants one.

    python -m workflow.run demo --cores 2          # workflow/config/demo.yaml; further arguments are Snakemake's

The same as ``snakemake --configfile workflow/config/demo.yaml --profile workflow/profiles/local --cores 2``, and:
one run of a study at a time; what a killed run has left, processes and locks, is out of the way first; Ctrl-C,
SIGTERM and a closed terminal end all processes within five seconds, and the same command continues.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import psutil

from filip.errors import UserError
from filip.progress import clock
from workflow import one_run
from workflow.warm import SERVER

CONFIGS = Path(__file__).resolve().parent / "config"
LOCAL = "workflow/profiles/local"
PATIENCE = 3.5  # seconds for jobs to save what they have
LAST_PATIENCE = 1.0  # more, for Snakemake itself; it then waits for no job
CLUSTER_PATIENCE = 60.0  # to cancel the jobs of a cluster
SILENCE = 2.5  # seconds until Snakemake has to be seen to start
SILENCE_IN_A_LOG = 30.0
SNAKEMAKE = "--snakemake"  # stands before Snakemake's arguments: be the child
STARTED = "FILIP_RUN_STARTED"  # in Snakemake's environment: the number of a pipe that it closes once it shows something


def config_file(study: str) -> Path:
    """Return the config of a study, by its name or path. Raise UserError if it does not exist."""
    found = [path for path in (CONFIGS / f"{study}.yaml", Path(study)) if path.is_file()]
    if not found:
        known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
        raise UserError(f"there is no study {study!r} in workflow/config: known are {known}")
    return found[0]


def read_study(config: Path) -> tuple[str, bool]:
    """Return the name under which a study keeps its results, and whether it runs on the CPUs of this machine alone.

    What is wrong with its config is for the Snakefile to say.
    """
    import yaml

    try:
        study = yaml.safe_load(config.read_text(encoding="utf-8"))
        return str(study["study"]), study["launch"].get("accelerator") == "cpu"
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        return config.stem, False


class Runner:
    """Snakemake as a child in a separate process group, which the terminal's Ctrl-C does not reach."""

    def __init__(self, config: Path, arguments: list[str]) -> None:
        from workflow.estimate import asks_for_one

        name, on_cpus = read_study(config)
        self.results = Path("results") / name
        self.local = "--profile" not in arguments
        self.warms_up = self.local and on_cpus and asks_for_one(arguments)
        profile = ["--profile", LOCAL] if self.local else []
        python = [sys.executable, "-m", "workflow.run", SNAKEMAKE]
        self.command = [*python, "--configfile", str(config), *profile, *arguments]
        self.stopped_by: int | None = None
        self.child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Run Snakemake; return its exit code, or 128 and the number of the signal that ended it."""
        self.folder = tempfile.mkdtemp(prefix="filip-")  # for the socket, whose path has to be short
        try:
            return self._run()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self) -> int:
        locks = one_run.take(self.results.name)
        if left := one_run.end(self._left, PATIENCE):
            _say(f"ended {left} processes that a killed run had left")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)
        reading, writing = os.pipe()
        # the jobs are commands of this environment, whether it was activated or not
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        environment = {**os.environ, "PATH": path, one_run.HELD: "1", STARTED: str(writing)}
        if self.warms_up:
            environment[SERVER] = str(Path(self.folder, "server"))
        self.child = subprocess.Popen(self.command, env=environment, pass_fds=(*locks, writing), process_group=0)
        if self.warms_up:
            self._warm_up(environment)
        signal.signal(signal.SIGTSTP, self._pause)
        os.close(writing)
        threading.Thread(target=_show_start, args=(reading,), daemon=True).start()
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
        return code if code >= 0 else 128 - code

    def _warm_up(self, environment: dict[str, str]) -> None:
        """Start the process that the jobs are forked from; it loads PyTorch while Snakemake is loaded."""
        mark = {one_run.MARK: str(self.results.resolve()), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        command = [sys.executable, "-m", "workflow.warm_server", environment[SERVER]]
        subprocess.Popen(command, env={**environment, **mark}, process_group=0)

    def _left(self) -> list[psutil.Process]:
        """Return the processes of this run other than Snakemake."""
        snakemake = self.child.pid if self.child else None
        return [process for process in one_run.processes(self.results) if process.pid != snakemake]

    def _stop(self) -> None:
        assert self.child is not None
        self.child.send_signal(signal.SIGINT)  # starts no more jobs, and waits for those that run
        time.sleep(0.3)
        one_run.end(self._left, PATIENCE)
        try:
            self.child.wait(LAST_PATIENCE if self.local else CLUSTER_PATIENCE)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        one_run.end(self._left, 0)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.stopped_by is None:
            self.stopped_by = number
            with suppress(OSError):  # print is not safe inside a signal handler
                os.write(2, b"\nstopping ...\n")

    def _pause(self, number: int, _: FrameType | None) -> None:
        """Stop all of it at Ctrl-Z, and later go on with all of it."""
        assert self.child is not None
        os.killpg(self.child.pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.killpg(self.child.pid, signal.SIGCONT)


def _say(text: str) -> None:
    with suppress(OSError):  # the terminal is closed
        print(text, file=sys.stderr, flush=True)


def _show_start(pipe: int) -> None:
    """Say that Snakemake is being loaded, until it closes the other end of the pipe and shows something itself."""
    began, terminal = time.monotonic(), sys.stderr.isatty()
    while not select.select([pipe], [], [], SILENCE if terminal else SILENCE_IN_A_LOG)[0]:
        text = f"loading Snakemake … {clock(time.monotonic() - began)}"
        print(text, end="\r" if terminal else "\n", file=sys.stderr, flush=True)
    os.close(pipe)


def snakemake(arguments: list[str]) -> NoReturn:
    """Run Snakemake, and leave without taking the imported libraries apart, which takes seconds."""
    one_run.die_with_parent()
    sys.argv = ["snakemake", *arguments]
    code: int | str | None = 1
    try:
        from snakemake.cli import main as command_line

        command_line(arguments)
    except SystemExit as ended:
        code = ended.code
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def main(arguments: list[str]) -> int:
    """Run the study that the first argument names."""
    if arguments[:1] == [SNAKEMAKE]:
        snakemake(arguments[1:])
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
