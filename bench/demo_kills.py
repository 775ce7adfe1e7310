"""Interrupt a study again and again, continue it each time, and compare its tables with those of a run left alone.

    python -m bench.demo_kills study=demo
    python -m bench.demo_kills study=workflow/config/demo.yaml places=[training] signals=[KILL]

Ctrl-C (INT) and TERM go to ``workflow.run``, KILL to Snakemake. Each time: how soon all of it has ended, and whether
a process of the run is left. CRASH kills both, so that jobs go on with nobody above them: the next start has to end
them. The study's results are removed first; ``reference`` keeps the tables of the run that is left alone, which is made
if it is not there.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil

from filip.command import MISSING, option, run_command
from filip.errors import UserError
from workflow import one_run
from workflow.run import config_file, read_study

# Where to strike: the module that is at work, and, if it matters how far it is, what its log then says.
PLACES = {
    "corpus": ("filip_demo.corpus", "", ""),
    "ingest": ("filip.data.ingest", "", ""),
    "download": ("filip.data.download", "", ""),
    "translate": ("filip.data.translate", "", ""),
    "feature maps": ("filip.train", "logs/train/*.log", "feature maps:"),
    "training": ("filip.train", "logs/train/*.log", "training:"),
    "evaluation": ("filip.eval", "", ""),
    "report": ("filip.report.", "", ""),
}
SIGNALS = {
    "INT": signal.SIGINT, "TERM": signal.SIGTERM, "KILL": signal.SIGKILL, "CRASH": signal.SIGKILL
}  # fmt: skip
MEASURED = ("seconds", "time_ratio", "memory")  # figures of a step on which no two runs agree


@dataclass
class Kills:
    study: str = option(MISSING, "name of a study, or its config")
    places: list[str] = option(
        ["corpus", "download", "translate", "feature maps", "evaluation"], f"of {', '.join(PLACES)}"
    )
    signals: list[str] = option(["INT", "TERM", "KILL"], "signals among INT, TERM, KILL and CRASH, each at each place")
    in_turn: bool = option(False, "one signal at each place instead, in turn")
    cores: int = option(2, "cores of Snakemake")
    after: float = option(3.0, "seconds at the place, at most")
    limit: float = option(5.0, "seconds in which all of it has to have ended")
    target: list[str] = option([], "files to make; all of the study if empty")
    reference: str = option("", "tables of a run left alone; results/STUDY-alone.json if empty")


def main(config: Kills) -> None:
    """Interrupt a study at several places, continue it, and compare its tables with those of a run left alone."""
    if unknown := [place for place in config.places if place not in PLACES]:
        raise UserError(f"places: no place {unknown[0]!r}; there are {', '.join(PLACES)}")
    if unknown := [number for number in config.signals if number not in SIGNALS]:
        raise UserError(f"signals: no signal {unknown[0]!r}; there are {', '.join(SIGNALS)}")
    results = Path("results") / read_study(config_file(config.study))["study"]
    reference = Path(config.reference or f"{results}-alone.json")
    if not reference.is_file():
        finish(config, results)
        shutil.copy(results / "tables/tables.json", reference)
    shutil.rmtree(results, ignore_errors=True)
    strikes = [(place, number) for place in config.places for number in config.signals]
    if config.in_turn:
        strikes = list(zip(config.places, cycle(config.signals), strict=False))
    late = [
        f"{number} at {place}: {seconds:.1f} s"
        for place, number in strikes
        if (seconds := strike(config, results, place, number)) > config.limit
    ]
    finish(config, results)
    differing = different_cells(reference, results / "tables/tables.json")
    print(f"{len(differing)} cells differ from the run left alone: {', '.join(differing[:5]) or 'none'}")
    if late:
        print(f"later than {config.limit:g} s: {', '.join(late)}")
    sys.exit(bool(late or differing))


def command(config: Kills) -> list[str]:
    """Return what a person would type."""
    return [
        sys.executable, "-m", "workflow.run", config.study, *config.target, "--cores", str(config.cores)
    ]  # fmt: skip


def finish(config: Kills, results: Path) -> None:
    """Run the study to its end."""
    started = time.monotonic()
    done = subprocess.run(command(config), capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the study failed:\n{(done.stdout + done.stderr)[-3000:]}")
    print(f"{results}: finished after {time.monotonic() - started:.0f} s", flush=True)


def strike(config: Kills, results: Path, place: str, number: str) -> float:
    """Start the study, interrupt it at a place, and return the seconds until nothing of it was left."""
    begun = time.time()
    running = subprocess.Popen(command(config), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not at(place, results, begun):
        if running.poll() is not None:
            raise UserError(f"the run ended with {running.returncode} before it was at {place!r}")
        time.sleep(0.1)
    time.sleep(random.uniform(0, config.after))
    snakemake = snakemake_of(running)
    victim = snakemake if number == "KILL" else running.pid
    started = time.monotonic()
    psutil.Process(victim).send_signal(SIGNALS[number])
    if number == "CRASH":
        psutil.Process(snakemake).kill()
        running.wait()
        print(f"CRASH at {place}: {len(one_run.processes(results))} processes go on", flush=True)
        return 0.0
    printed, _ = running.communicate(timeout=120)
    seconds = time.monotonic() - started
    left = one_run.processes(results)
    announced = "the same command continues" in printed
    print(f"{number:<5} at {place}: ended after {seconds:.1f} s, {len(left)} processes left", flush=True)
    if left or not announced or "Traceback" in printed:
        names = ", ".join(" ".join(process.cmdline()[:5]) for process in left)
        raise UserError(f"left: {names or 'nothing'}; it printed:\n{printed[-3000:]}")
    return seconds


def at(place: str, results: Path, since: float) -> bool:
    """Return whether a command of this place runs and, where the place has a log, whether the log says so."""
    module, logs, text = PLACES[place]
    if not any(module in " ".join(arguments(process)) for process in one_run.processes(results)):
        return False
    fresh = [log for log in results.glob(logs or "nothing") if log.stat().st_mtime > since]
    return not logs or any(text in log.read_text(errors="replace") for log in fresh)


def arguments(process: psutil.Process) -> list[str]:
    """Return the command line of a process, empty if it is gone."""
    try:
        words: list[str] = process.cmdline()
        return words
    except psutil.Error:
        return []


def snakemake_of(running: subprocess.Popen[str]) -> int:
    """Return Snakemake's process number."""
    children = psutil.Process(running.pid).children()
    return next(int(child.pid) for child in children if "snakemake" in arguments(child))


def different_cells(one: Path, other: Path) -> list[str]:
    """Return the names of the cells that differ between two runs, without what is measured of a step."""
    first, second = (cells(json.loads(path.read_text(encoding="utf-8"))) for path in (one, other))
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


def cells(tables: dict[str, Any]) -> dict[str, Any]:
    """Return {table/row/column: the cell}."""
    return {
        f"{name}/{row['label']}/{key}": cell
        for name, table in tables["tables"].items()
        for row in table["rows"]
        for key, cell in row["cells"].items()
        if not key.startswith(MEASURED)
    }


if __name__ == "__main__":
    run_command(main, Kills)
