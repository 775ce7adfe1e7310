"""The Python of docs/models.md under "Exports" and of the exports' cards runs as written, without this project."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from filip.export.__main__ import Export, export
from filip.models import ModelConfig
from tests.eval.miniature import picture
from tests.support.manual import code_of
from tests.support.processes import run_well

RUN = """
import json, os, sys
sys.path.insert(0, os.path.abspath("exported/a-onnx"))
sys.modules["filip"] = None
blocks, cards = json.load(open("blocks.json"))
for block in blocks:
    exec(compile(block, block, "exec"), {})
for folder, block in cards.items():
    os.chdir(folder)
    exec(compile(block, block, "exec"), {})
"""


@pytest.mark.slow  # four exports, and everybody's library
def test_the_code_of_the_page_runs_as_written_without_this_project(saved: Callable[..., str], tmp_path: Path) -> None:
    def change(config: ModelConfig) -> None:
        config.image.image_size = 224  # as in the page
        config.text.context_length = 16

    cards = {}
    for form, place in (("hf", "a"), ("mv", "a-mv"), ("onnx", "a-onnx")):
        export(Export(model=saved(change), out=str(folder := tmp_path / "exported" / place), to=form))
        cards[str(folder)] = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.M | re.S)[0]
    for name in ("bicycle", "cat"):
        picture(len(name), 250).save(tmp_path / f"{name}.jpg")
    blocks = code_of("models.md", "Exports")
    assert [re.search(r"transformers|sentence|onnx", block)[0] for block in blocks] == [  # type: ignore[index]
        "transformers",
        "sentence",
        "onnx",
    ]
    (tmp_path / "blocks.json").write_text(json.dumps([blocks, cards]))
    run_well("-c", RUN, cwd=tmp_path)
