"""Wrong command lines, one of each kind: each is answered by one sentence that names the mistake."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filip.__main__ import main
from filip.cli.command import run_command
from filip.index import build
from tests.eval.miniature import picture, write_model, write_webdataset

LINES = [
    line.rsplit(" -> ", 1)
    for line in (Path(__file__).parent / "wrong_commands.txt").read_text(encoding="utf-8").splitlines()
    if line.startswith("filip ")
]
WORKED_FIRST = "filip data ingest source=photos out=small"  # the mistake shows in the pictures
LONGEST = 700  # longest message in characters
# Words of libraries and of Python that nobody who types a command has heard of.
JARGON = re.compile(
    r"Traceback|[Hh]ydra|[Oo]mega[Cc]onf|of type '|could not be converted|not in '[A-Z]|\w+Error\b|object at 0x|"
    r"\[Errno|NoneType|<class|\{'"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    write_model(folder / "filip.safetensors", "token_wise")
    write_model(folder / "clip.safetensors", "pooled")
    (folder / "photos").mkdir()
    for number in range(8):
        picture(number, 48).save(folder / "photos" / f"{number}.png")
        (folder / "photos" / f"{number}.txt").write_text(f"a photo of {number} dogs on the beach\n")
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("just a text\n")
    (folder / "broken.safetensors").write_bytes(b"no model")
    (folder / "pairs.csv").write_text("url,caption\nhttp://a.org/1.jpg,a dog on the beach\n")
    (folder / "odd.csv").write_text("image,width\na.png,3\n")
    (folder / "lost.csv").write_text("image,caption\na.png,a cat\n")
    rows = {"url": ["http://a.org/1.jpg", "http://a.org/2.jpg"], "caption": ["a dog", "a cat"]}
    pq.write_table(pa.table(rows), folder / "list.parquet")
    (folder / "result.json").write_text('{"a": 1}\n')
    (folder / "broken.json").write_text("{")
    write_webdataset(folder / "cifar10", ["cat", "dog"], [0, 1, 0, 1])
    index = [f"model={folder}/filip.safetensors", f"images={folder}/photos", f"out={folder}/index", "device=cpu"]
    run_command(build.main, build.Build, argv=index)
    return folder


def run_line(words: list[str]) -> None:
    """Run it as the shell would; a training without the module's last line, which leaves without unwinding."""
    if words[1] == "train" and "=" in words[2]:
        from filip.train.__main__ import main as train

        train(words[2:])
    main()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(("line", "named"), LINES, ids=[line for line, _ in LINES])
def test_a_wrong_command_line_is_answered_with_a_sentence_that_names_the_mistake(
    line: str, named: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = set(folder.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        run_line(shlex.split(line))
    printed = capfd.readouterr()
    assert stopped.value.code == 2
    assert printed.out == ""
    message = printed.err[printed.err.rindex("error: ") :]
    assert named in message
    assert not JARGON.search(printed.err), JARGON.search(printed.err)
    assert len(message) < LONGEST
    left = sorted(set(folder.rglob("*")) - before)
    assert not left or line.startswith(WORKED_FIRST)
    shutil.rmtree(folder / "small", ignore_errors=True)
