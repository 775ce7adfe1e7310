"""Collages of cut-out photographs: which files are taken, and the same recall as `filip eval` on a folder of them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.photographs import collage, read_cut_outs, recall
from filip.eval.scorer import load_scorer

NAMES = ("cat", "red bus", "owl", "apple", "fork", "tulip", "hammer", "boat")


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    folder = tmp_path / "usr/share/tuxpaint/stamps/animals"
    folder.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number).integers(0, 256, (80, 60, 4), np.uint8)
        pixels[..., 3] = 255
        pixels[:10, :10, 3] = 0
        write(folder / f"{number}.png", pixels, f"A{'n' if name[0] in 'ao' else ''} {name}.\nUne traduction")
    write(folder / "cartoon.png", pixels, "A mouse.")
    write(folder / "again.png", pixels, "A cat.")
    write(folder / "sentence.png", pixels, "A wheel! Put the brake to the rear.")
    pixels[..., 3] = 255
    write(folder / "with_background.png", pixels, "A field.")
    return tmp_path


def write(file: Path, pixels: np.ndarray, text: str) -> None:
    Image.fromarray(pixels, "RGBA").save(file)
    file.with_suffix(".txt").write_text(text, encoding="utf-8")


def test_cut_outs_with_a_name_are_taken(stamps: Path) -> None:
    assert sorted(read_cut_outs(stamps)) == sorted(NAMES)


@pytest.mark.slow
def test_recall_is_that_of_an_evaluation_of_the_same_collages(stamps: Path) -> None:
    cut_outs = read_cut_outs(stamps)
    pairs = {text: image for image, text in (collage(cut_outs, 3, index) for index in range(24))}
    album = stamps / "album"
    album.mkdir()
    for number, (text, image) in enumerate(pairs.items()):
        image.save(album / f"{number}.png")
        (album / f"{number}.txt").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "filip", "eval", "model=emoji", f"data={album}", "protocols=[retrieval]"]
    command.append(f"out={stamps}/found.json")
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads((stamps / "found.json").read_text())["benchmarks"]["album"]
    mean = 50 * (found["i2t"]["r1"] + found["t2i"]["r1"])
    assert recall(load_scorer("emoji"), [(image, text) for text, image in pairs.items()]) == pytest.approx(mean)
