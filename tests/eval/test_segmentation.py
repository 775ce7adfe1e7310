"""Dense protocols: each patch's class against maps of classes."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from filip.eval.cards import load_card
from filip.eval.encode_set import Context
from filip.eval.protocols import NoSettings
from filip.eval.protocols.segmentation import run as segment
from tests.eval.miniature import write_split
from tests.eval.test_alignment import COLOURS, ColourBlind
from tests.support.shards import encoded

CARD = """
name: squares
title: squares
kind: segmentation
metric: miou
loader: webdataset
layouts: {webdataset: {path: squares, split: test, maps: true}}
classes: {r: red, g: green, b: blue}
prompts: squares
"""
TWO = "squares: {templates: ['a photo of a {c}.', 'the {c}'], count: 2}"


class Coloured(ColourBlind):
    """A model that sees colours; ``token_wise`` false: a text is the sum of its words."""

    def __init__(self, token_wise: bool):
        super().__init__()
        self.token_wise = token_wise  # type: ignore[misc]

    def encode_texts(self, texts: list[str]) -> tuple[Tensor, None]:
        return torch.stack([F.normalize(words.sum(0), dim=-1) for words in self.words(texts)]), None


def squares(root: Path, images: int = 3, shown: Sequence[int] = (1, 2, 3)) -> Path:
    """Write quarters of 16 pixels: red, green, blue and one that no class has; ``shown``: the classes in the maps."""
    page, values = Image.new("RGB", (32, 32), "white"), np.zeros((32, 32), np.uint8)
    for place, colour in enumerate(COLOURS.values()):
        x, y = 16 * (place % 2), 16 * (place // 2)
        page.paste(colour, (x, y, x + 16, y + 16))
        values[y : y + 16, x : x + 16] = place + 1 if place + 1 in shown else 0
    about = json.dumps({"things": [{"label": label} for label in "rgb"]}).encode()
    files = {"png": encoded(page), "things.png": encoded(Image.fromarray(values)), "json": about, "txt": b"squares"}
    members = [(f"{number}.{kind}", data) for number in range(images) for kind, data in files.items()]
    write_split(root / "squares" / "test", [members])
    (root / "squares" / "dataset_type.txt").write_text("retrieval")
    (root / "card.yaml").write_text(CARD)
    return root / "card.yaml"


@pytest.mark.parametrize("token_wise", [True, False])
def test_patches_that_name_their_class_give_one_and_others_do_not_count(tmp_path: Path, token_wise: bool) -> None:
    card = load_card(squares(tmp_path))
    record: dict = {}
    (tmp_path / "prompts.yaml").write_text(TWO)
    context = Context(str(tmp_path), str(tmp_path / "prompts.yaml"))
    result = segment(Coloured(token_wise), card, NoSettings(), context, record)  # type: ignore[arg-type]
    assert (result["n"], result["classes"], result["prompts"]) == (3, 3, 2)
    assert result["miou"] == pytest.approx(1, abs=0.01) and result["pixels"] == pytest.approx(1, abs=0.01)
    assert list(record["squares"].key) == ["0", "1", "2"]


def test_areas_are_those_of_counting_pixels(tmp_path: Path) -> None:
    """Red and green are confused: half of the pixels of each class go to the other one."""
    card = load_card(squares(tmp_path, images=1))

    class Confused(Coloured):
        def patches(self, pixels: Tensor) -> Tensor:
            result = super().patches(pixels).view(len(pixels), 4, 4, 3).clone()
            result[:, :1, :, :2] = result[:, :1, :, [1, 0]]  # the upper half of red and green, which are above
            return result.view(len(pixels), 16, 3)

    actual = segment(Confused(True), card, NoSettings(), Context(str(tmp_path), "{c}"), {})  # type: ignore[arg-type]
    by_class = dict(actual["per_class"])
    # Each has 256 pixels, 128 of them right; predicted as it: 128 right and 128 of the other. 128 / 384.
    assert by_class["red"] == pytest.approx(1 / 3, abs=0.01) and by_class["green"] == pytest.approx(1 / 3, abs=0.01)
    assert by_class["blue"] == pytest.approx(1, abs=0.01)
    assert actual["pixels"] == pytest.approx(2 / 3, abs=0.01)
    assert actual["present"]["pixels"] == actual["pixels"]  # the image has all classes
    assert actual["present"]["miou"] == pytest.approx(actual["miou"])


def test_patches_choose_from_the_classes_that_their_image_has(tmp_path: Path) -> None:
    """Without green in the map its patches do not count, and those of red that look green have red and blue left."""
    card = load_card(squares(tmp_path, images=1, shown=(1, 3)))

    class Greenish(Coloured):
        def patches(self, pixels: Tensor) -> Tensor:
            result = super().patches(pixels) + torch.tensor([0.0, 2.0, 0.0])  # green leads everywhere
            return result / result.norm(dim=-1, keepdim=True)

    actual = segment(Greenish(True), card, NoSettings(), Context(str(tmp_path), "{c}"), {})  # type: ignore[arg-type]
    assert actual["pixels"] == pytest.approx(0, abs=0.01)
    assert actual["present"]["pixels"] == pytest.approx(1, abs=0.01) and actual["present"]["chance"] == 1 / 2
    assert actual["present"]["miou"] == pytest.approx(1, abs=0.01)
