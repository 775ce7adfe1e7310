"""Two tiny models, a few captioned pictures, and the page of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from filip.command import run_command
from filip.explore.export import Export
from filip.explore.export import main as export
from tests.eval.miniature import write_model, write_webdataset

CAPTIONS = [
    "a red dog on the beach",
    "two black cats",
    "a slot machine and a red shuttlecock",
    "an old bridge over the river",
    "</script><img src=x onerror=alert(1)>",
    "a boat & a lamp",
]


class Prepared:
    """A folder with ``clip.safetensors``, ``filip.safetensors`` and the test set of a card, and the page of both."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.page = folder, folder / "explore.html"
        self.models = [
            write_model(folder / "clip.safetensors", "pooled", seed=1),
            write_model(folder / "filip.safetensors", "token_wise", seed=2),
        ]
        self.pictures = write_webdataset(folder / "demo_scenes_new", None, [[c] for c in CAPTIONS])
        self.options = [
            f"models=[{','.join(self.models)}]",
            "labels=[CLIP,FILIP]",
            "images=demo_scenes_new",
            f"root={folder}",
            "device=cpu",
        ]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    found = Prepared(tmp_path_factory.mktemp("explore"))
    run_command(export, Export, argv=[*found.options, f"out={found.page}"])
    return found
