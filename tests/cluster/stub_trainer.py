"""In place of filip.train: joins the other ranks as the trainer does, then behaves by its first argument."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from filip.train.launcher_env import EXIT_CODE_FILE, STOPPED_BY_SIGNAL, USERS_MISTAKE, fill_environment


def meet(rank: int, world_size: int) -> list[int]:
    """Let every rank tell the first one its number and wait for it. Return the ranks that came, in order."""
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if rank == 0:
        others, came = [], [0]
        with socket.create_server(place, backlog=world_size) as server:
            for _ in range(world_size - 1):
                others.append(server.accept()[0])
                came.append(int(others[-1].recv(16)))
        for other in others:
            other.send(b"all here")
        return sorted(came)
    end = time.monotonic() + 120
    while True:
        try:
            with socket.create_connection(place, timeout=120) as connection:
                connection.send(str(rank).encode())
                assert connection.recv(16) == b"all here"
                return []
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.2)


def leave(code: int) -> None:
    if rank == 0:
        Path(os.environ[EXIT_CODE_FILE]).write_text(str(code))
    os._exit(code)


def stop() -> None:
    """Handle a signal: the first rank saves, unless its peer is dead."""
    if rank == 0 and behaviour != "one_rank_dies":
        (folder / "checkpoints" / "step00000001").mkdir(parents=True)
    leave(STOPPED_BY_SIGNAL)


behaviour, folder = sys.argv[1], Path(sys.argv[2])
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda *_: stop())
fill_environment()
rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
met = meet(rank, world_size)
if rank == 0:
    with open(folder / "starts.jsonl", "a") as file:
        file.write(json.dumps({"met": met, "local_world_size": int(os.environ["LOCAL_WORLD_SIZE"])}) + "\n")
if behaviour == "mistake":
    if rank:
        time.sleep(2)  # like the trainer's other ranks, so that the first one can speak
    leave(USERS_MISTAKE)
if behaviour == "one_rank_dies":
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
if behaviour == "wait":
    time.sleep(300)
leave(0)
