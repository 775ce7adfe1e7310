"""The speedrun is written independently of the library: both compute the same losses, gradients, recall and towers."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from filip_demo.sprites import COLOURS
from late_interaction import SmoothMaximum, contrastive_loss, late_interaction

RECORDS = Path(__file__).parents[1] / "records"


def load():
    spec = importlib.util.spec_from_file_location("speedrun", RECORDS / "speedrun.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


speedrun = load()


@pytest.fixture(scope="module")
def world():
    return speedrun.World()


def tokens(requires_grad: bool = True):
    torch.manual_seed(0)
    images, texts = F.normalize(torch.randn(5, 9, 8), dim=2), F.normalize(torch.randn(5, 7, 8), dim=2)
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 5, 4])[:, None]
    return images.requires_grad_(requires_grad), texts.requires_grad_(requires_grad), mask


@pytest.mark.parametrize("smooth", [0.0, 0.05, 1.0])
def test_similarities_loss_and_gradients_are_those_of_the_library(smooth: float) -> None:
    scale = torch.tensor(20.0)
    images, texts, mask = tokens()
    i2t, t2i = speedrun.similarity(images, texts, mask, smooth)
    loss = speedrun.contrastive_loss(i2t, t2i, scale)
    loss.backward()

    their_images, their_texts, mask = tokens()
    backend = SmoothMaximum(smooth) if smooth else "auto"
    theirs = late_interaction(their_images, their_texts[mask], mask.sum(1), backend=backend)
    their_loss = contrastive_loss(theirs, scale).loss
    their_loss.backward()

    torch.testing.assert_close(i2t, theirs.i2t)
    torch.testing.assert_close(t2i, theirs.t2i)
    torch.testing.assert_close(loss, their_loss)
    torch.testing.assert_close(images.grad, their_images.grad)
    torch.testing.assert_close(texts.grad, their_texts.grad)
    assert images.grad.abs().sum() > 0


def test_a_token_depends_on_its_inked_patch_alone_and_the_numbers_of_patches_are_whitened(world) -> None:
    torch.manual_seed(0)
    tower = speedrun.ImageTower(64)
    pixels = world.draw(world.training_scenes(np.random.default_rng(0), 300))
    tower.whiten(pixels)
    patches = F.unfold(pixels, 12, stride=12).transpose(1, 2).flatten(0, 1)
    white = ((patches[patches.abs().sum(1) > 0] - tower.mean) @ tower.whitening).T.cov()
    assert (white - white.diagonal().diag()).abs().max() < 0.01 and 0.5 < white.diagonal().min() <= 1
    ink, places, other = F.avg_pool2d(pixels, 12).sum(1).flatten(1), speedrun.inked(pixels), pixels[:1].clone()
    assert ink.any() and not ink.scatter(1, places, 0).any()  # every patch with ink is a token
    token = ink[0, places[0]].argmax().item()
    y, x = divmod(places[0, token].item(), 6)
    other[:, :, 12 * y : 12 * y + 12, 12 * x : 12 * x + 12] += 1
    changed = (tower(pixels[:1]) != tower(other)).any(2)[0]
    assert changed.nonzero().flatten().tolist() == [token]


def test_no_training_scene_has_a_reserved_thing_in_or_near_a_test_colour(world) -> None:
    scenes = world.training_scenes(np.random.default_rng(0), 2000)
    reserved = ((scenes.things % speedrun.RESERVED == 0) & (scenes.things >= 0)).any(1)
    shown = np.where(scenes.things >= 0, scenes.colours, 9)
    assert 0.3 < reserved.mean() < 0.9
    assert (shown[reserved] >= 3).all() and (shown[~reserved] < 3).any()
    tests = world.test_scenes()
    assert (tests.things % speedrun.RESERVED == 0).all() and (np.sort(tests.colours, 1) == [0, 1, 2]).all()
    assert not set(world.names) & {"a", "and", *speedrun.COLOURS} and set(COLOURS) <= set(speedrun.COLOURS)


def test_a_caption_names_what_is_drawn_and_an_exchange_changes_two_colours_alone(world) -> None:
    tests = world.test_scenes(5)
    exchange = tests._replace(colours=tests.colours[:, [2, 1, 0]])
    for true, exchanged in zip(world.captions(tests), world.captions(exchange), strict=True):
        assert true != exchanged and sorted(true.replace(",", "").split()) == sorted(exchanged.replace(",", "").split())
    pictures, others = world.draw(tests), world.draw(exchange)
    assert ((pictures > 0).any(1) == (others > 0).any(1)).float().mean() > 0.99 and not pictures.equal(others)


@pytest.mark.slow
def test_it_runs_alone_and_writes_its_pictures(tmp_path: Path) -> None:
    for name in ("speedrun.py", "speedrun.npz"):
        shutil.copy(RECORDS / name, tmp_path)
    command = [sys.executable, "-I", "speedrun.py", "model=clip,heads,filip,smooth", "seeds=2", "steps=2"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    lines = [line for line in printed.splitlines() if "2 seeds, 2 steps" in line]
    assert [line.split()[0] for line in lines] == ["clip", "heads", "filip", "smooth"]
    assert all("polyline" in (tmp_path / "learning.svg").read_text() for _ in lines)
    assert (tmp_path / "words.svg").read_text().count("<g ") == 24
    (tmp_path / "speedrun.npz").write_bytes(b"other")
    failed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.startswith("error: the SHA-256 of ")
