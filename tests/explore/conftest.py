"""Two tiny models, a few captioned pictures, and the page of them."""

from pathlib import Path

import pytest
import torch

from filip.cli.command import run_command
from filip.explore.export import ExplorerExport
from filip.explore.export import main as export
from filip.models import DualEncoder, load_model, save_model
from filip.text.tokenizer import tokenize
from tests.eval.miniature import write_model, write_webdataset

CAPTIONS = [
    "a red dog on the beach",
    "two black cats",
    "a slot machine and a red shuttlecock",
    "an old bridge over the river",
    "</script><img src=x onerror=alert(1)>",
    "a boat & a lamp",
]

# Texts that the page was not made for; its models have learned all their words.
FREE = ["a RED  boat,  on the old river", "it’s naïve &amp; “fine” 2026!", "слон и 漢字 🎉", "black cats " * 40]


def teach(model: DualEncoder, texts: list[str]) -> None:
    """Change the embeddings of the texts' tokens, as a training does."""
    with torch.no_grad():
        model.text.token_embedding.weight[tokenize(texts, model.text.context_length)[0].unique()] *= 4


class Prepared:
    """A folder with ``clip.safetensors``, ``filip.safetensors`` and the test set of a card, and the page of both."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.page = folder, folder / "explore.html"
        self.models = [
            write_model(folder / "clip.safetensors", "pooled", seed=1),
            write_model(folder / "filip.safetensors", "token_wise", seed=2),
        ]
        for path in self.models:
            model = load_model(path)
            teach(model, [*FREE, *CAPTIONS])
            save_model(path, model)
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
    result = Prepared(tmp_path_factory.mktemp("explore"))
    run_command(export, ExplorerExport, argv=[*result.options, f"out={result.page}"])
    return result
