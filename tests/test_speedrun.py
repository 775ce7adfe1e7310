"""The speedrun is written independently of the library: both compute the same losses, gradients, recall and towers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import speedrun
import torch
import torch.nn.functional as F
import verify

from filip_demo.sprites import COLOURS
from late_interaction import SmoothMaximum, contrastive_loss, late_interaction

RECORDS = Path(__file__).parents[1] / "records"


@pytest.fixture(scope="module")
def world():
    return speedrun.World()


def tokens():
    torch.manual_seed(0)
    images, texts = F.normalize(torch.randn(5, 9, 8), dim=2), F.normalize(torch.randn(5, 7, 8), dim=2)
    return images.requires_grad_(), texts.requires_grad_()


@pytest.mark.parametrize("smooth", [0.0, 0.05, 1.0])
def test_similarities_loss_and_gradients_are_those_of_the_library(smooth: float) -> None:
    scale = torch.tensor(20.0)
    images, texts = tokens()
    i2t, t2i = speedrun.similarity(images, texts, smooth)
    loss = speedrun.contrastive_loss(i2t, t2i, scale)
    loss.backward()

    their_images, their_texts = tokens()
    maximum = SmoothMaximum(smooth) if smooth else None
    theirs = late_interaction(their_images, their_texts.flatten(0, 1), torch.full((5,), 7), maximum=maximum)
    their_loss = contrastive_loss(theirs, scale).loss
    their_loss.backward()

    torch.testing.assert_close(i2t, theirs.i2t)
    torch.testing.assert_close(t2i, theirs.t2i)
    torch.testing.assert_close(loss, their_loss)
    torch.testing.assert_close(images.grad, their_images.grad)
    torch.testing.assert_close(texts.grad, their_texts.grad)
    assert images.grad.abs().sum() > 0


def test_a_token_depends_on_its_patch_alone_and_the_numbers_of_patches_are_whitened(world) -> None:
    torch.manual_seed(0)
    tower = speedrun.ImageTower(64)
    pixels = world.draw(world.training_scenes(np.random.default_rng(0), 300))
    tower.whiten(pixels)
    white = tower.white(pixels).flatten(0, 1).T.cov()
    assert (white - white.diagonal().diag()).abs().max() < 0.01 and 0.5 < white.diagonal().min() <= 1
    other = pixels[:1].clone()
    other[:, :, 24:36, 48:60] += 1  # the third row of patches, the fifth patch
    changed = (tower(pixels[:1]) != tower(other)).any(2)[0]
    assert changed.nonzero().flatten().tolist() == [2 * 6 + 4]


def test_a_reserved_thing_is_in_a_test_colour_in_the_named_things_of_tests_alone(world) -> None:
    scenes = world.training_scenes(np.random.default_rng(0), 2000)
    reserved = scenes.things % speedrun.RESERVED == 0
    assert (scenes.colours[reserved] >= 3).all() and (scenes.colours[~reserved] < 3).any()
    tests = world.test_scenes()
    for shown in (scenes, tests):
        assert all(len(set(row)) == 9 for kind in (shown.things, shown.cells) for row in kind.tolist())
    assert (tests.things[:, :3] % speedrun.RESERVED == 0).all()
    assert (np.sort(tests.colours[:, :3], 1) == [0, 1, 2]).all()
    others = tests.things[:, 3:] % speedrun.RESERVED == 0
    assert (tests.colours[:, 3:][others] >= 3).all() and not others.all()
    assert not set(world.names) & {"a", "and", *speedrun.COLOURS} and set(COLOURS) <= set(speedrun.COLOURS)


def test_a_caption_names_what_is_drawn_and_an_exchange_changes_two_colours_alone(world) -> None:
    tests = world.test_scenes(5)
    exchange = tests._replace(colours=tests.colours[:, [2, 1, 0, *range(3, 9)]])
    for true, exchanged in zip(world.captions(tests), world.captions(exchange), strict=True):
        assert true != exchanged and sorted(true.replace(",", "").split()) == sorted(exchanged.replace(",", "").split())
    pictures, others = world.draw(tests), world.draw(exchange)
    assert ((pictures > 0).any(1) == (others > 0).any(1)).float().mean() > 0.99 and not pictures.equal(others)
    cells = pictures.unflatten(2, (3, 24)).unflatten(4, (3, 24)).transpose(3, 4).flatten(2, 3)  # [n, 3, 9, 24, 24]
    changed = (
        (cells != others.unflatten(2, (3, 24)).unflatten(4, (3, 24)).transpose(3, 4).flatten(2, 3)).any(4).any(3).any(1)
    )
    for row, places in enumerate(tests.cells):
        assert set(changed[row].nonzero().flatten().tolist()) == {places[0], places[2]}


@pytest.mark.parametrize("kind", ["clip", "relu", "heads"])
def test_each_single_vector_is_one_unit_vector_a_side_that_the_order_of_patches_does_not_change(kind: str) -> None:
    torch.manual_seed(0)
    pool, tokens = speedrun.Pool(kind, 64), torch.randn(4, 36, 64)
    one = pool(tokens)
    assert one.shape[:2] == (4, 1)
    torch.testing.assert_close(one.norm(dim=2), torch.ones(4, 1))
    torch.testing.assert_close(one, pool(tokens[:, torch.randperm(36)]))


@pytest.mark.slow
def test_it_runs_alone_and_its_log_is_run_again(tmp_path: Path) -> None:
    names = ("speedrun.py", "speedrun.npz", "verify.py")
    for name in names:
        shutil.copy(RECORDS / name, tmp_path)
    command = [sys.executable, "speedrun.py", "model=heads,filip", "seeds=0,1", "steps=2"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    lines = [line for line in printed.splitlines() if "2 seeds, 2 steps" in line]
    assert [line.split()[0] for line in lines] == ["heads", "filip"]
    assert (tmp_path / "learning.svg").read_text().count("<polyline") == 8
    (tmp_path / "speedrun").mkdir()
    (tmp_path / "log.json").rename(tmp_path / "speedrun/board.json")
    verify = [sys.executable, "verify.py", "board"]
    assert subprocess.run(verify, cwd=tmp_path, capture_output=True).returncode == 0
    log = json.loads((tmp_path / "speedrun/board.json").read_text())
    for training in log["rows"][1]["trainings"]:
        training["rejected"] += 20
    (tmp_path / "speedrun/board.json").write_text(json.dumps(log))
    again = subprocess.run(verify, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 1 and "differs" in again.stdout
    (tmp_path / "speedrun.npz").write_bytes(b"other")
    failed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.startswith("error: the SHA-256 of ")


def test_the_board_is_what_its_logs_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    verify.main()
    printed = capsys.readouterr().out
    assert printed.count("\n") > 8 and printed in (RECORDS / "README.md").read_text()
    rows = {row["model"]: row for row in json.loads((RECORDS / "speedrun/board.json").read_text())["rows"]}
    page = (RECORDS.parent / "docs/findings.md").read_text().partition("## 3.")[0]
    for kind in ("clip", "relu", "filip"):
        rejected = np.mean([training["rejected"] for training in rows[kind]["trainings"]])
        assert f" {rejected:.1f} %" in page
    assert f" {rejected:.1f} %" in (RECORDS.parent / "README.md").read_text()
