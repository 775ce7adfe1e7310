"""Build an index over and over in one process while another searches it: ``python -m bench.index_together``.

The builder adds pictures, changes and deletes some, and builds again; the reader opens, searches and closes. Neither
may fail, and at the end the index has the pictures of the folder.
"""

import multiprocessing
import random
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from filip.command import option, run_command
from filip.eval.scorer import load_scorer
from filip.index import build
from filip.index.store import Index
from filip.search.ranking import query_of, rank

SCENES = sorted(Path("docs/scenes").glob("*.png"))


@dataclass
class Together:
    seconds: int = option(300, "how long", at_least=1)


def main(config: Together) -> None:
    """Print how often the index was built and searched meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        photos, index = Path(folder) / "photos", Path(folder) / "index"
        photos.mkdir()
        _change(photos, random.Random(0), 0)
        _build(photos, index)
        until = time.time() + config.seconds
        builder = multiprocessing.get_context("spawn").Process(target=_builder, args=(photos, index, until))
        builder.start()
        scorer, searches, sizes = load_scorer("emoji", device="cpu"), 0, set()
        while builder.is_alive():
            opened = Index.open(index)
            hits = rank(opened, scorer, query_of(scorer, "a jellyfish")).hits[:5]
            assert len(hits) == min(5, len(opened)) and hits[0].score >= hits[-1].score
            sizes.add(len(opened))
            opened.close()
            searches += 1
        builder.join()
        assert builder.exitcode == 0, "the builder failed"
        opened = Index.open(index)
        assert sorted(opened.paths) == sorted(path.name for path in photos.iterdir())
        print(f"{searches} searches by one process saw {len(sizes)} sizes of the index, up to {max(sizes)}; no fault")


def _builder(photos: Path, index: Path, until: float) -> None:
    torch.set_num_threads(1)
    chance, number = random.Random(1), 0
    while time.time() < until:
        number += 1
        _change(photos, chance, number)
        _build(photos, index)
    print(f"built {number} times", flush=True)


def _build(photos: Path, index: Path) -> None:
    build.main(build.Build("emoji", str(photos), str(index), batch_size=4, device="cpu"))


def _change(photos: Path, chance: random.Random, number: int) -> None:
    """Delete and change up to five pictures each, and add ten."""
    there = sorted(photos.iterdir())
    chance.shuffle(there)
    for path in there[:5]:
        path.unlink()
    for path in there[5:10]:
        shutil.copy(chance.choice(SCENES), path)
    for n in range(10):
        shutil.copy(chance.choice(SCENES), photos / f"{number:04}-{n}.png")


if __name__ == "__main__":
    run_command(main, Together)
