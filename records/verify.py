"""The speedrun's board: print it from the logs in records/speedrun/, or train one of its rows again and compare.

    python records/verify.py              # prints the board, and writes board.svg; needs torch and numpy
    python records/verify.py smooth_150   # trains that log's rows again, from the source in it

Bits differ from one kind of CPU to another, and trainings with them: a mean may differ by its own spread.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
MEASURES = ("found_i2t", "found_t2i", "rejected", "places", "cpu_seconds", "products")


def main(name: str = "") -> None:
    logs = {file.stem: json.loads(file.read_text()) for file in sorted(HERE.glob("speedrun/*.json"))}
    if not name:
        return board([row for name, log in logs.items() if "named" not in name for row in log["rows"]])
    if name not in logs:
        sys.exit(f"error: no log {name} in {HERE / 'speedrun'}: it is one of {', '.join(logs)}")
    with tempfile.TemporaryDirectory() as folder:
        for file, source in logs[name]["sources"].items():
            Path(folder, file).write_text(source)
        shutil.copy(HERE / "speedrun.npz", folder)
        subprocess.run([sys.executable, *logs[name]["command"].split()], cwd=folder, check=True)
        again = json.loads(Path(folder, "log.json").read_text())["rows"]
    failed = False
    for row, new_row in zip(logs[name]["rows"], again, strict=True):
        for measure in MEASURES:
            old, new = (np.array([training[measure] for training in r["trainings"]]) for r in (row, new_row))
            spread = 4 * np.hypot(old.std(), new.std()) / len(old) ** 0.5 + 1  # of the difference of two means
            far = measure in MEASURES[:4] and abs(old.mean() - new.mean()) > spread
            failed |= far
            print(
                f"{row['model']:8} {measure:12} recorded {old.mean():7.1f}   again {new.mean():7.1f}"
                + "   differs" * int(far)
            )
    sys.exit(int(failed))


def board(rows: list[dict]) -> None:
    """Print a line of Markdown for each row, the fewest matrix products first, and draw what they reject and find."""
    means = [{m: np.mean([t[m] for t in row["trainings"]]) for m in MEASURES} for row in rows]
    dots, labels = "", []
    for i in np.argsort([mean["products"] for mean in means]):
        row, mean = rows[i], means[i]
        places = "" if np.isnan(mean["places"]) else f"{mean['places']:.1f}"
        found = f"{mean['found_i2t']:.1f} / {mean['found_t2i']:.1f} | {mean['rejected']:.1f} | {places}"
        cost = f"{mean['cpu_seconds']:.1f} | {mean['products']:.0f} | {row['p']:.1g}"
        print(f"| `{row['model']}` | {row['steps']} | {len(row['trainings'])} | {found} | {cost} |")
        x, y = 50 + 3 * (mean["found_i2t"] + mean["found_t2i"]), 464 - 4.4 * mean["rejected"]
        if row["steps"] == 300:
            low, place = y > 150, y - 10 if y > 150 else y + 20
            while any(abs(x - a) < 55 and abs(place - b) < 12 for a, b in labels):
                place += -13 if low else 13
            labels.append((x, place))
            name = f'<text x="{x - 8:.0f}" y="{place:.0f}">{row["model"]}</text>'
            dots += f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4"/>{name}'
    axes = '<path d="M50 14v240h620" fill="none" stroke="black"/><path d="M50 244h620" stroke="#bbb"/>'
    axes += "".join(f'<text x="22" y="{468 - 4.4 * y:.0f}">{y}</text>' for y in (50, 75, 100))
    axes += "".join(f'<text x="{40 + 6 * x}" y="270">{x}</text>' for x in (0, 25, 50, 75, 100))
    axes += '<text x="230" y="288">scenes found, R@1, mean of both directions (%)</text>'
    axes += '<text x="60" y="12">exchanged captions rejected (%); grey: chance</text>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="292" font-size="12">{axes}{dots}</svg>'
    Path("board.svg").write_text(svg)


if __name__ == "__main__":
    main(*sys.argv[1:])
