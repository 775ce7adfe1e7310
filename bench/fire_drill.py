"""Strike a training on a real Slurm in every way that a cluster has, and look whether it ends as if left alone.

    python -m bench.fire_drill folder=/tmp/drill              # as root; Debian's packages of Slurm are installed
    python -m bench.fire_drill folder=/tmp/drill kinds=[eio,quota_on_one_node] ranks=[0,1]

A study of two equal trainings (two ranks of a tiny model each) runs through Snakemake's Slurm plugin on virtual nodes
of this machine. One is struck, the other is not, and nobody acts but as told at each kind. In the end weights, outcomes
and tables of the two are equal and the errors name rank and host, or the exit code is 1. Printed: what each strike did,
the steps lost, the first error that its start has kept, and the goodput (seconds of the steps that counted over those
of the training's life).
"""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.runs.saved_files import newest_intact
from filip.train.job import attempts
from filip.train.launcher_env import USERS_MISTAKE
from tests.cluster.desk import RUNS, Desk, kill, make_checkout, make_study
from tests.cluster.one_host_slurm import OneHostSlurm, why_not
from tests.support.training import flip_bit, same_weights

STRUCK = "shaken"
LOCKED_SECONDS, SLOW_SECONDS = 20, 15
SAVE_EVERY = 5  # steps
BETWEEN = 7  # steps between two strikes: a checkpoint is there, or the third crash would be the last
QUOTA = 100_000  # bytes of a file; a rank's part of a checkpoint is larger


@dataclass
class FireDrill:
    folder: str = option(MISSING, "where Slurm, the study and its logs live; must not exist", writes="folder")
    kinds: list[str] = option(["all"], "kinds of trouble, in turn")
    ranks: list[int] = option([1], "the ranks, 0 or 1, that each kind for one rank strikes in turn")
    nodes: int = option(4, "virtual nodes", at_least=2)


class Drill:
    """The desk with its study, and the strikes on one of its trainings."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.slurm = desk, desk.slurm
        self.rows: list[tuple[str, int, str, int, float, str]] = []
        self.mounts: list[Path] = []
        self.rank = 1  # the one that is struck
        self.desk.study["train"]["overrides"] += [
            f"checkpoint.every_steps={SAVE_EVERY}", "data.shuffle_window_shards=1"  # and so few shards stay open
        ]  # fmt: skip

    def leave(self) -> None:
        """End what was started, and take the small disk away again."""
        self.desk.leave()
        for place in self.mounts:
            subprocess.run(["umount", "--lazy", place], check=False)

    # ---- strikes: each returns what was done, and nothing else acts until steps are taken again -----------

    def start_up_pre_emption(self) -> str:
        """TERM while the ranks import, after a crash that made them start."""
        self._kill_rank()
        begun = self.desk.starts(STRUCK)
        self.desk.wait(lambda: self.desk.starts(STRUCK) > begun and len(self.desk.ranks(STRUCK)) == 2)
        self.slurm.ask("scancel", "--signal=TERM", self._job())
        return f"rank {self.rank} killed, and SIGTERM before the next start's first step"

    def time_limit(self) -> str:
        self.desk.reach_time_limit(STRUCK, self._job())
        return "SIGUSR1 ten minutes before the limit"

    def pre_emption(self) -> str:
        self.slurm.ask("scancel", "--signal=TERM", self._job())
        return "SIGTERM to every rank"

    def dead_rank(self) -> str:
        self._kill_rank()
        return f"rank {self.rank} killed"

    def dead_node(self) -> str:
        """A power cut of the node that runs the batch script; its daemon comes back later."""
        node = self.desk.first_node(self._job())
        self.slurm.kill_node(node)
        begun = self.desk.starts(STRUCK)
        self.desk.wait(lambda: self.desk.starts(STRUCK) > begun)
        self.slurm.start_node(node)
        return f"node{node} without power"

    def held_lock(self) -> str:
        """The lock of the dead start lives on, as on NFS or Lustre."""
        place = self.desk.run_folder(STRUCK) / "lock"
        begun, taken = self.desk.starts(STRUCK), threading.Event()

        def hold() -> None:
            with open(place, "r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # comes once the holder is dead
                taken.set()
                while self.desk.starts(STRUCK) == begun:
                    time.sleep(0.5)
                time.sleep(LOCKED_SECONDS)

        threading.Thread(target=hold, daemon=True).start()
        time.sleep(1)
        self._kill_rank()
        self.desk.wait(taken.is_set)
        return f"rank {self.rank} killed, its lock held until {LOCKED_SECONDS} s after the next start"

    def slow_rank(self) -> str:
        ranks = self.desk.ranks(STRUCK)
        ranks[self.rank].suspend()
        time.sleep(SLOW_SECONDS)
        ranks[self.rank].resume()
        return f"rank {self.rank} stands still for {SLOW_SECONDS} s"

    def dead_controller(self) -> str:
        self.slurm.kill_controller()
        self.desk.wait_for_steps(STRUCK, 1)
        self.slurm.start_controller()
        return "slurmctld killed, started again a step later"

    def dead_snakemake(self) -> str:
        """A person unlocks the folder and starts it again, as docs/cluster.md says."""
        kill(self.desk.started[-1])
        self.desk.unlock()
        self.desk.start()
        return "Snakemake killed, unlocked and started again"

    def corrupt_checkpoint(self) -> str:
        return self._damage("cut in half", lambda file: os.truncate(file, file.stat().st_size // 2))

    def bit_flips(self) -> str:
        return self._damage("with a bit flipped", lambda file: flip_bit(file, 4 * file.stat().st_size))

    def _damage(self, how: str, damage: Callable[[Path], None]) -> str:
        """Damage the largest file of the newest checkpoint while the training is down."""
        newest, _ = newest_intact(self.desk.run_folder(STRUCK) / "checkpoints")
        if newest is None:
            raise UserError("no checkpoint yet to damage: strike later")
        file = max(newest.iterdir(), key=lambda path: path.stat().st_size)
        self._kill_rank()
        damage(file)
        return f"rank {self.rank} killed, {newest.name}/{file.name} {how}"

    def eio(self) -> str:
        self.desk.meet("eio", self.rank)
        return f"every read of a shard fails on rank {self.rank}"

    def lost_shard(self) -> str:
        self.desk.meet("lost_shard", self.rank)
        return f"rank {self.rank} finds no shard"

    def quota_on_one_node(self) -> str:
        """Files of a rank may not grow, as where its node's quota is used up; its next start has room."""
        self.desk.wait(lambda: len(self.desk.ranks(STRUCK)) == 2)
        self.desk.ranks(STRUCK)[self.rank].rlimit(psutil.RLIMIT_FSIZE, (QUOTA, QUOTA))
        return f"no file of rank {self.rank} may exceed {QUOTA / 1000:.0f} kB"

    def no_such_host(self) -> str:
        self.desk.meet("no_such_host", self.rank, self._kill_rank, starts=2)
        return f"rank {self.rank} killed, and at the next start it cannot resolve the first rank's host"

    def two_starts(self) -> str:
        """A person starts the same training by hand."""
        self.desk.wait(lambda: len(self.desk.ranks(STRUCK)) == 2)
        command = [word for word in self.desk.ranks(STRUCK)[0].cmdline() if not word.startswith("world_size=")]
        self.desk.suspend(STRUCK)  # or it might end first
        second = subprocess.run(
            command, env=self.desk.environment(), cwd=self.desk.folder, capture_output=True, text=True, check=False
        )
        self.desk.resume(STRUCK)
        if second.returncode != USERS_MISTAKE or "another training is at work" not in second.stderr:
            raise UserError(f"the second start was not refused: {second.stderr[-1000:]}")
        return "started by hand in the same folder, and refused"

    def cut_network(self) -> str:
        """The connections of both ranks are closed by the kernel, as a switch that forgets them does."""
        ports = {
            connection.laddr.port
            for rank in self.desk.ranks(STRUCK)
            for connection in rank.net_connections("tcp")
            if connection.status == psutil.CONN_ESTABLISHED
        }
        for port in sorted(ports):
            subprocess.run(["ss", "--kill", "sport", "=", str(port)], check=True, capture_output=True)
        return f"{len(ports)} connections of the ranks cut"

    def full_disk(self) -> str:
        """The file system of the checkpoints has no room for a further one: a person makes some, and starts again."""
        place = self.desk.run_folder(STRUCK) / "checkpoints"
        self.desk.suspend(STRUCK)
        with tempfile.TemporaryDirectory() as aside:
            shutil.copytree(place, aside, dirs_exist_ok=True)
            size = sum(file.stat().st_size + 4096 for file in Path(aside).rglob("*")) + 65536
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "drill", place], check=True)
            self.mounts.append(place)
            shutil.copytree(aside, place, dirs_exist_ok=True)
        self.desk.resume(STRUCK)
        if not self.desk.ends(self.desk.started[-1]):
            raise UserError("Snakemake has ended well although no checkpoint could be written")
        subprocess.run(["mount", "-o", "remount,size=1g", place], check=True)
        self.desk.start()
        return f"no room beyond {size >> 10} KiB; Snakemake ended, room made, started again"

    def not_finite(self) -> str:
        """A rank's weights are no longer numbers, as after a memory fault: a person looks at it, and starts again."""
        self.desk.wait(lambda: len(self.desk.ranks(STRUCK)) == 2)
        self.desk.ranks(STRUCK)[self.rank].send_signal(signal.SIGUSR2)
        if not self.desk.ends(self.desk.started[-1]):
            raise UserError("Snakemake has ended well although the weights of a rank were not finite")
        self.desk.start()
        return f"rank {self.rank}'s weights made NaN; Snakemake ended, started again"

    # ---- around a strike ----------------------------------------------------------------------------------

    def strike(self, kind: str, rank: int = 1) -> None:
        """Strike once, wait until the training takes further steps, and note the loss."""
        self.rank = rank
        self.desk.wait_for_steps(STRUCK, BETWEEN)
        starts, begun = self.desk.starts(STRUCK), time.monotonic()
        what = getattr(self, kind)()
        if ENDS in KINDS[kind]:
            self.desk.wait(lambda: self.desk.starts(STRUCK) > starts)
        reached, taken = self._most(), len(self._steps())
        self.desk.wait(lambda: len(self._steps()) > taken and self._most() > reached)
        seconds = time.monotonic() - begun
        lost = self._lost(range(starts, self.desk.starts(STRUCK)))
        errors = [
            line.get("error", "")
            for line in attempts(self.desk.run_folder(STRUCK))
            if starts <= line["attempt"] < self.desk.starts(STRUCK) and line.get("error")
        ]
        self.rows.append((kind, rank, what, lost, seconds, "; then ".join(errors)))
        print(f"{kind}: {what}; steps again after {seconds:.0f} s, {lost} lost", flush=True)

    def _job(self) -> str:
        jobs = [job for job, state in self.desk.jobs(STRUCK).items() if state == "RUNNING"]
        return jobs[0] if jobs else next(iter(self.desk.jobs(STRUCK)))

    def _lost(self, ended: range) -> int:
        """Count the steps that these starts have taken beyond their newest checkpoint: the next start repeats them."""
        lost = 0
        for line in attempts(self.desk.run_folder(STRUCK)):
            if line["attempt"] in ended and "outcome" in line:
                output = (self.desk.run_folder(STRUCK) / f"logs/{line['attempt']:03d}.log").read_text(encoding="utf-8")
                taken = [int(number) for number in re.findall(r"training: (\d+) of", output)]
                saved = re.search(r"\d+", line["checkpoint"])
                lost += max([0, *taken]) - int(saved[0]) if saved and taken else 0
        return lost

    def _steps(self) -> list[int]:
        return [line["step"] for line in self.desk.records(STRUCK) if "loss/total" in line]

    def _most(self) -> int:
        return max(self._steps(), default=0)

    def _kill_rank(self) -> None:
        self.desk.wait(lambda: len(self.desk.ranks(STRUCK)) == 2)
        with contextlib.suppress(psutil.NoSuchProcess):
            self.desk.ranks(STRUCK)[self.rank].kill()


# Besides its method above: a kind may strike one rank, leave that rank's error in the log of starts, and end a start.
RANK, NAMED, ENDS = "rank", "named", "ends"
KINDS = {
    "dead_rank": {RANK, ENDS}, "slow_rank": {RANK}, "held_lock": {RANK, ENDS}, "start_up_pre_emption": {RANK, ENDS},
    "corrupt_checkpoint": {RANK, ENDS}, "bit_flips": {RANK, ENDS}, "eio": {RANK, NAMED, ENDS},
    "lost_shard": {RANK, NAMED, ENDS}, "quota_on_one_node": {RANK, NAMED, ENDS}, "no_such_host": {RANK, NAMED, ENDS},
    "not_finite": {RANK, ENDS}, "pre_emption": {ENDS}, "time_limit": {ENDS}, "dead_controller": set(),
    "dead_snakemake": set(), "dead_node": {ENDS}, "cut_network": {ENDS}, "full_disk": {ENDS}, "two_starts": set(),
}  # fmt: skip


def main(config: FireDrill) -> None:
    """Strike a training on a one-host Slurm in every way that a cluster has; compare it with one that is left alone."""
    kinds = list(KINDS) if config.kinds == ["all"] else config.kinds
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"kinds: there is no {unknown[0]!r}; there are {', '.join(KINDS)}")
    if reason := why_not():
        raise UserError(f"no Slurm can be started here: {reason}")
    folder = Path(config.folder).resolve()
    folder.mkdir(parents=True)
    make_checkout(folder)
    strikes = [(kind, rank) for kind in kinds for rank in (config.ranks if RANK in KINDS[kind] else [1])]
    with OneHostSlurm(folder, nodes=config.nodes) as slurm:
        desk = Desk(folder, slurm, make_study("drill", nodes=1))
        desk.study["train"]["overrides"].append(f"max_steps={100 + 40 * len(strikes)}")
        drill = Drill(desk)
        try:
            desk.start()
            for kind, rank in strikes:
                drill.strike(kind, rank)
            code = desk.ends(desk.started[-1], timeout=3600)
        finally:
            drill.leave()
        equal = code == 0 and report(drill)
    sys.exit(not equal)


def report(drill: Drill) -> bool:
    """Print the table, the goodput and the comparison; return whether both trainings and the errors are as expected."""
    desk = drill.desk
    print("\n| kind | what happened | steps lost | steps again after | first error kept |\n|---|---|---|---|---|")
    for kind, _, what, lost, seconds, error in drill.rows:
        print(f"| {kind} | {what} | {lost} | {seconds:.0f} s | {error or '–'} |")
    for run in RUNS:
        print(f"{run}: {goodput(desk, run)}")
    same = {
        "weights": same_weights(*(desk.folder / desk.weights(run) for run in RUNS)),
        "outcomes": desk.outcomes(RUNS[0]) == desk.outcomes(RUNS[1]),
        "tables": desk.cells(RUNS[0]) == desk.cells(RUNS[1]),
    }
    print(", ".join(f"{name} {'equal' if yes else 'DIFFER'}" for name, yes in same.items()), flush=True)
    named = [
        f"rank {rank} on {socket.gethostname()}" in error
        for kind, rank, *_, error in drill.rows
        if NAMED in KINDS[kind]
    ]
    print(f"{sum(named)} of {len(named)} errors name the rank that was struck, and its host", flush=True)
    return all([*same.values(), *named])


def goodput(desk: Desk, run: str) -> str:
    """Return which share of a training's life went into steps that counted."""
    lines = [line for line in desk.records(run) if "speed/seconds_per_step" in line]
    steps = {line["step"]: line["speed/seconds_per_step"] for line in lines}  # a start drops what it repeats
    begun = attempts(desk.run_folder(run))
    first, last = (datetime.fromisoformat(begun[index]["time"]) for index in (0, -1))
    life = (last - first).total_seconds()
    good = sum(steps.values())
    starts = len({line["attempt"] for line in begun})
    return (
        f"{len(steps)} steps, {starts} starts, {life:.0f} s; goodput {good / life:.0%} "
        f"(a step {statistics.median(steps.values()):.2f} s)"
    )


if __name__ == "__main__":
    run_command(main, FireDrill)
