"""README's first table: written by a command, and README has what that command writes."""

from itertools import pairwise
from pathlib import Path

from bench.readme import BEGIN, END, ROWS, Readme, main, results_block
from filip.cli.command import run_command
from filip.report.results import Results
from filip.report.table import Cell, Column, Less, Row, Table
from filip.study import load_study

ROOT = Path(__file__).parents[2]
STUDY = load_study(ROOT / "workflow/config/demo.yaml")
RUNS = ("clip", "filip", "smooth")


def tables(pair: tuple[str, str], seeds: int = 1, compared: bool = True) -> dict[str, Table]:
    """Make tables of two runs whose differences all hold, except the last one's."""
    columns: dict[str, list[Column]] = {}
    for _, name, key in ROWS:
        columns.setdefault(name, []).append(Column(key, ""))
    found = {}
    for name, keys in columns.items():
        rows = []
        for run in pair:
            value = {"clip": 0.013, "filip": 0.107, "smooth": 0.201}[run]
            cells = {c.key: Cell(value, 0.001, 1000, [value - 0.004, value + 0.004], seeds) for c in keys}
            if compared and run == pair[1]:
                for cell in cells.values():
                    cell.less = Less(0.094, [0.08, 0.11], 0.001, seeds >= 5)
            rows.append(Row(run, "ours", cells, run=run))
        if compared and name == ROWS[-1][1]:
            rows[-1].cells[ROWS[-1][2]].less = Less(0.001, [-0.02, 0.03], 0.8, False)
        found[name] = Table(name, "", keys, rows)
    return found


def block(seeds: int = 1, compared: bool = True) -> str:
    steps = [tables(pair, seeds, compared) for pair in pairwise(RUNS)]
    return results_block(STUDY, steps, RUNS, Results("results/none"))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def rows(text: str) -> list[list[str]]:
    return [cells(line) for line in text.splitlines() if line.startswith("|")]


def test_the_table_has_chance_all_runs_and_each_less_the_one_before() -> None:
    head, _, *lines = rows(block())
    labels = ["CLIP", "FILIP", "FILIP, smooth"]
    assert head == ["", "chance", *labels, "FILIP less CLIP", "FILIP, smooth less FILIP"]
    assert [line[0] for line in lines] == [heading for heading, *_ in ROWS]
    values = ["1.3 [0.9, 1.7]", "10.7 [10.3, 11.1]", "20.1 [19.7, 20.5]"]
    assert lines[0][1:] == ["0.1", *values, *["+9.4 [8.0, 11.0]"] * 2]
    assert lines[-1][-1] == "+0.1 [−2.0, 3.0]"
    assert "From `make demo`, in percent: one training of each model" in block()


def test_the_command_writes_table_and_picture(folder: Path, tmp_path: Path) -> None:
    readme, picture = tmp_path / "README.md", tmp_path / "docs" / "alignment.png"
    readme.write_text(f"# Title\n{BEGIN}\n{END}\n")
    curves = tmp_path / "docs" / "learning.png"
    arguments = [f"results={folder}", f"readme={readme}", f"picture={picture}", f"curves={curves}", "runs=[clip,filip]"]
    arguments.append(f"binding={tmp_path}/none")
    run_command(main, Readme, argv=arguments)
    assert not picture.exists()
    (folder / "eval" / "scenes_compared.png").write_bytes(b"a picture")
    run_command(main, Readme, argv=arguments)
    assert picture.read_bytes() == b"a picture" and curves.stat().st_size
    assert rows(readme.read_text())[0] == [
        "",
        "chance",
        "baseline (CLIP)",
        "FILIP (all) 100 % & more",
        "FILIP (all) 100 % & more less baseline (CLIP)",
    ]
