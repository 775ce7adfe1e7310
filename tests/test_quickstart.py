"""docs/quickstart.ipynb: every cell runs, in order, on a copy of the scenes, and prints what is stored below it."""

import contextlib
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SAME_EVERYWHERE = 5  # cells: what is printed after them is of a training, whose numbers depend on the CPU


@pytest.mark.slow
def test_the_notebook_prints_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DOCS / "scenes", tmp_path / "scenes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    cells = json.loads((DOCS / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {}
    printed = []
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), names)
        printed.append(out.getvalue())
        stored = "".join("".join(output["text"]) for output in cell["outputs"])
        assert bool(stored) and (len(printed) >= SAME_EVERYWHERE or printed[-1] == stored)
    assert printed[-1].startswith(("11 of 12", "12 of 12"))
