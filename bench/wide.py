"""Compare the values of ``fit`` on pictures of 3:1: the table of docs/evaluation.md.

    python -m bench.wide                    # after `make demo`; a minute of one core

Each picture is white with one scene of the demo in its left, middle or right third, in turn.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from filip.command import option, run_command
from filip.eval.fit import FITS
from filip.eval.formats.webdataset import WebdatasetFolder


@dataclass
class Wide:
    """The models, and the scenes that are put into wide pictures."""

    models: list[str] = option(
        [f"results/demo/models/{run}.safetensors" for run in ("clip", "filip", "smooth")], "models to evaluate"
    )
    scenes: str = option("results/demo/corpus/eval/demo_scenes_new", "test set in CLIP_benchmark's layout")
    count: int = option(300, "pictures")


def main(study: Wide) -> None:
    """Write the pictures to a temporary folder, evaluate each model with each fit, and print R@1 as Markdown."""
    print("| model | fit | i2t R@1 | t2i R@1 |\n|---|---|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        data = WebdatasetFolder(study.scenes)
        for index in range(study.count):
            sample, file = data[index], Path(folder, f"{index:04d}.png")
            page = Image.new("RGB", (3 * sample.image.width, sample.image.height), "white")
            page.paste(sample.image, (index % 3 * sample.image.width, 0))
            page.save(file)
            file.with_suffix(".txt").write_text(sample.captions[0])
        for model in study.models:
            for fit in FITS:
                out = Path(folder, "out.json")
                command = [sys.executable, "-m", "filip.eval", f"model={model}", f"data=[{folder}]", f"fit={fit}"]
                subprocess.run([*command, "protocols=[retrieval]", f"out={out}"], check=True, capture_output=True)
                (found,) = json.loads(out.read_text())["benchmarks"].values()
                recall = " | ".join(f"{100 * found[way]['r1']:.1f}" for way in ("i2t", "t2i"))
                print(f"| {Path(model).stem} | {fit} | {recall} |", flush=True)
                out.unlink()


if __name__ == "__main__":
    run_command(main, Wide)
