"""A folder that a person would work in on a cluster, with a study of tiny trainings, and Snakemake in it."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from filip.common.files import digest, write_json
from filip.data.shard_set import shard_entries
from filip.train.supervise import attempts
from tests.cluster.one_host_slurm import OneHostSlurm
from tests.support.processes import Process, run_python
from tests.support.squares import write_shards, write_test_set
from tests.support.training import records
from workflow.study import ROOT

STEPS = 110  # steps of a training
RUNS = ("calm", "shaken")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@dataclass
class Desk:
    """A working folder with a study of trainings on squares, each on two nodes x two ranks of a tiny model, and of the
    table of their retrieval.
    """

    folder: Path
    slurm: OneHostSlurm
    study: dict
    started: list[Process] = field(default_factory=list)

    def snakemake(self, *arguments: str) -> list[str]:
        """Return the arguments for Python of a Snakemake with the Slurm profile, for the tables."""
        (self.folder / "study.yaml").write_text(yaml.safe_dump(self.study))
        command = [str(ROOT / "tests/cluster/eager_snakemake.py"), "--configfile", "study.yaml"]
        command += ["--profile", "workflow/profiles/slurm", "--set-threads", "evaluate=1", *arguments]
        command += ["--slurm-init-seconds-before-status-checks", "1"]  # after each submission; 40 by default
        return [*command, "--", str(self.tables)]

    def start(self) -> Process:
        # the data are here already
        rules = ("pretrain", "evaluate", "study_config", "tables")
        command = self.snakemake("--latency-wait", "5", "--allowed-rules", *rules)
        log = self.folder / "snakemake.log"
        log.touch()
        self.started.append(Process(command, self.environment(), log, cwd=self.folder))
        return self.started[-1]

    def environment(self) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        path = f"{self.folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"
        # all virtual nodes are this machine, and their names are in no hosts file
        more = {"PYTHONPATH": str(self.folder), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        return {**mine, "PATH": path, **more}

    def unlock(self) -> None:
        """Unlock the folder as a person does after Snakemake was killed."""
        done = run_python(*self.snakemake("--unlock"), variables=self.environment(), cwd=self.folder)
        assert done.returncode == 0, done.stderr

    # ---- questions -----------------------------------------------------------------------------------

    @property
    def results(self) -> Path:
        return Path("results") / self.study["study"]

    @property
    def tables(self) -> Path:
        return self.results / "tables/tables.json"

    def weights(self, run: str) -> Path:
        return self.results / f"models/{run}.safetensors"

    def result(self, run: str) -> dict:
        return json.loads((self.folder / self.weights(run)).with_suffix(".json").read_text())

    def outcomes(self, run: str) -> dict[str, list]:
        """Return the outcome of each image and caption in the evaluation."""
        with np.load(self.folder / self.results / f"eval/{run}/retrieval/squares.npz") as arrays:
            return {name: arrays[name].tolist() for name in arrays.files}

    def cells(self, run: str) -> dict[str, dict]:
        """Return {table: {column: cell}} of the row of this run, without its difference from the first row."""
        tables = json.loads((self.folder / self.tables).read_text())["tables"]
        rows = {name: row for name, table in tables.items() for row in table["rows"] if row["run"] == run}
        return {name: {key: {**cell, "less": None} for key, cell in row["cells"].items()} for name, row in rows.items()}

    def jobs(self, run: str) -> dict[str, str]:
        """Return {job: state} of this training, as Slurm has them; rule and wildcards are in the plugin's comment."""
        lines = self.slurm.ask("squeue", "-h", "--states=all", "-o", "%i %T %k").splitlines()
        return {words[0]: words[1] for words in map(str.split, lines) if words[2].endswith(f"pretrain_wildcards_{run}")}

    def records(self, run: str) -> list[dict]:
        """Return the lines of the log in the run's folder, of all starts of the training."""
        log = next((self.folder / self.results / "runs").glob(f"{run}-*/log.jsonl"), None)
        return records(log.parent) if log else []

    def step(self, run: str) -> int:
        """Return the last step in the log; a training that has lost steps repeats them."""
        return next((line["step"] for line in reversed(self.records(run)) if "step" in line), 0)

    def said(self, run: str, words: str) -> int:
        """Return how many messages of the training have these words."""
        return sum(words in line.get("text", "") for line in self.records(run))

    def wait(self, true: Callable[[], bool], timeout: float = 600, every: float = 0.2) -> None:
        """Wait until it is true; raise an error if Snakemake ends before."""

        def checked() -> bool:
            assert self.started[-1].poll() is None, self.explain()
            return true()

        self.slurm.wait_until(checked, timeout, self.explain, every)

    def wait_for_steps(self, run: str, count: int) -> None:
        """Wait until the training has made this many more steps, and not many more than these."""
        reached = self.step(run)
        self.wait(lambda: self.step(run) >= reached + count, every=0.05)

    def ends(self, snakemake: Process, timeout: float = 900) -> int:
        try:
            return snakemake.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.explain()) from None

    def explain(self) -> str:
        jobs = self.slurm.ask("squeue", "--states=all", "-o", "%i %T %r %E %k")
        logs = [self.folder / "snakemake.log", *(self.folder / self.results / "logs/train").glob("*.log")]
        return "\n".join([jobs, *(log.read_text()[-3000:] for log in logs if log.exists())])

    def run_folder(self, run: str) -> Path:
        return next((self.folder / self.results / "runs").glob(f"{run}-*"))

    def starts(self, run: str) -> int:
        return max((line["attempt"] for line in attempts(self.run_folder(run))), default=0)

    def meet_eio(self, rank: int) -> None:
        """Let every read of a shard fail on a rank of the second run until its start has ended: trouble.py."""
        begun, place = self.starts(RUNS[1]), self.folder / "trouble"
        place.write_text(str(rank))
        self.wait(lambda: any(a["attempt"] == begun and "outcome" in a for a in attempts(self.run_folder(RUNS[1]))))
        place.unlink()

    def ranks(self, run: str) -> list[psutil.Process]:
        """Return the ranks of a training of this study, in order, without the workers of their loaders."""
        result = {}
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if "filip.train" not in command[2:5] or f"out={self.weights(run)}" not in command:
                continue
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):  # it, or its parent, has just ended
                parent, number = process.parent(), int(process.environ()["SLURM_PROCID"])
                if parent is None or parent.cmdline()[1:3] != ["-m", "filip.train"]:
                    result[number] = process
        return [result[rank] for rank in sorted(result)]

    def suspend(self, run: str) -> None:
        for process in self.ranks(run):
            process.suspend()

    def suspend_at(self, count: int) -> None:
        """Wait until each training has made this many steps, and suspend it then: any may be first by far."""
        going = list(RUNS)

        def all_suspended() -> bool:
            for run in [run for run in going if self.step(run) >= count]:
                self.suspend(run)
                going.remove(run)
            return not going

        self.wait(all_suspended, every=0.05)

    def resume(self, run: str) -> None:
        for process in self.ranks(run):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def reach_time_limit(self, run: str, job: str) -> None:
        """Let Slurm send the signal that comes ten minutes before the limit, and wait until the training has saved.

        The ranks stand still until then, or they might finish; Slurm sends SIGCONT as well.
        """
        saved = self.said(run, "stopped by a signal")
        self.suspend(run)
        self.slurm.ask("scontrol", "update", f"JobId={job}", "EndTime=now+10minutes")
        self.wait(lambda: self.said(run, "stopped by a signal") > saved)
        self.slurm.ask("scontrol", "update", f"JobId={job}", "TimeLimit=60")  # of its next start

    def leave(self) -> None:
        """End what was started here, and its jobs."""
        for process in self.started:
            process.kill()
        for job, state in self.slurm.jobs().items():
            if state not in ENDED:
                self.slurm.ask("scancel", job)


def make_checkout(folder: Path) -> None:
    """Fill ``folder`` with the files of the repository that a study needs, the data set of squares as the stages of the
    data leave it, and a benchmark of squares.
    """
    for name in ("filip", "workflow", "data", "eval", "ds_configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc.*", "_*.so"))
    shutil.copy(ROOT / "Snakefile", folder)
    shutil.copy(ROOT / "tests/cluster/trouble.py", folder / "sitecustomize.py")
    source = folder / "squares" / "cc3m"
    write_shards(source, shards=8, per_shard=16)
    for tar in sorted((source / "shards").glob("*.tar")):
        keys = pq.read_table(source / "captions" / f"{tar.stem}.parquet")["key"]
        status = pa.array(["success"] * len(keys))
        pq.write_table(pa.table({"key": keys, "status": status}), tar.with_suffix(".parquet"))
    shards, captions = source / "shards", source / "captions"
    entries = shard_entries(shards, captions)
    folders = {"shards": str(shards), "captions": str(captions)}
    write_json(source / "manifest.json", {"sha256": digest(entries), "shards": entries, "folders": folders})
    write_test_set(folder / "benchmarks/squares", range(0, 224, 3))
    card = yaml.safe_load((folder / "eval/demo_test.yaml").read_text())
    card |= {"name": "squares", "layouts": {"webdataset": {"path": "squares", "split": "test"}}}
    (folder / "eval/squares.yaml").write_text(yaml.safe_dump(card))


def make_study(name: str, nodes: int = 2) -> dict:
    """Return a study of two equal trainings on squares, each on ``nodes`` x two ranks of a tiny model."""
    return {
        "study": name,
        "title": "squares",
        "data_dir": "squares",
        "sources": ["cc3m"],
        "launch": {
            **{"launcher": "srun", "nodes": nodes, "ranks_per_node": 2, "accelerator": "cpu", "cpus_per_rank": 1},
            "resources": {"runtime": 60, "mem_mb": 4000, "slurm_extra": "--exclusive"},
        },
        "train": {
            "experiment": "demo_from_scratch",
            "overrides": [
                *("model=tiny", "backend=tiled", "global_batch=32", "data.workers=1", f"max_steps={STEPS}"),
                *("optimizer.warmup_steps=4", "log_every=1"),
                *("checkpoint.every_minutes=0", "checkpoint.every_steps=20"),
            ],
        },
        "runs": {run: {"label": run} for run in RUNS},
        "eval": {"root": "benchmarks", "threads": 1, "zero_shot": [], "retrieval": ["squares"]},
        "tables": {"retrieval": ["calm", "shaken"]},
    }


def kill(process: Process) -> None:
    """Kill a process as ``kill -9`` does: nothing is tidied up."""
    process.kill()
    process.wait()
