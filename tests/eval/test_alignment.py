"""Word-patch alignment: token spans, what each patch looks at, pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from filip.cli.command import run_command
from filip.eval.encoders import load_encoder
from filip.eval.picture import main as picture_command
from filip.eval.picture import schema_of
from filip.eval.pointing import coverage
from filip.eval.word_patch import Prompt, label_tokens, word_patches
from filip.images.eval_transform import EvalTransform
from tests.eval.miniature import write_model, write_webdataset

EVAL = Path(__file__).parents[2] / "eval"
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColourBlind:
    """A model with colours as patch vectors; a colour's word has its colour, others grey."""

    name, token_wise, image_size, grid = "colours", True, 32, (4, 4)

    def __init__(self) -> None:
        self.transform = EvalTransform(32)

    def patches(self, pixels: Tensor) -> Tensor:
        white = self.transform(Image.new("RGB", (32, 32), "white"))
        black = self.transform(Image.new("RGB", (32, 32), "black"))
        shares = F.avg_pool2d((pixels - black) / (white - black), 8)
        colours = shares - shares.mean(1, keepdim=True) - 0.01
        return F.normalize(colours.flatten(2).transpose(1, 2), dim=-1)

    def tokens(self, text: str) -> list[str]:
        return ["[BOS]", *text.replace(".", " .").split(), "[EOS]"]

    def words(self, texts: Sequence[str]) -> list[Tensor]:
        results = []
        for text in texts:
            rows = [torch.tensor(COLOURS.get(t, (-1, -1, -1)), dtype=torch.float32) for t in self.tokens(text)]
            results.append(F.normalize(torch.stack(rows), dim=-1))
        return results


def square(name: str, left: int, top: int) -> Image.Image:
    """Return a coloured square of 16 pixels on white."""
    image = Image.new("RGB", (32, 32), "white")
    image.paste(COLOURS[name], (left, top, left + 16, top + 16))
    return image


def test_label_tokens_are_those_of_the_label(tmp_path):
    encoder = load_encoder(write_model(tmp_path / "m.safetensors"))
    prompt = Prompt("a photo of a ", ".")
    tokens = encoder.tokens(prompt.fill("black cat"))
    assert tokens == ["[BOS]", "a", "photo", "of", "a", "black", "cat", ".", "[EOS]"]
    assert label_tokens(encoder, prompt, "black cat") == [5, 6]
    assert label_tokens(encoder, Prompt("", ""), "sari") == [1]
    # BPE cuts rare words; all their pieces belong to the label.
    pieces = label_tokens(encoder, prompt, "abacus")
    assert "".join(encoder.tokens(prompt.fill("abacus"))[i] for i in pieces) == "abacus" and len(pieces) > 1
    # A label that ends in punctuation merges with the full stop: "!." is one token, and not the label's.
    merged = label_tokens(encoder, prompt, "stop!")
    assert [encoder.tokens(prompt.fill("stop!"))[i] for i in merged] == ["stop"]


def test_a_pooled_model_has_patches_and_words_too(tmp_path):
    encoder = load_encoder(write_model(tmp_path / "m.safetensors", "pooled"))
    (result,) = word_patches(encoder, torch.zeros(1, 3, 32, 32), ["cat"], Prompt("", ""))
    assert result.similarity.shape == (16, 3)
    # Its last word vector is the one it is trained with.
    assert torch.allclose(encoder.words(["cat"])[0][-1], encoder.encode_texts(["cat"])[0][0], atol=1e-6)


def test_coverage_follows_the_transform_s_crop():
    mask = Image.new("L", (64, 32), 0)
    mask.paste(255, (16, 0, 32, 32))  # the left half of the centre crop
    share = coverage(mask, EvalTransform(16), (2, 2))
    assert share == pytest.approx(np.array([[1.0, 0.0], [1.0, 0.0]]), abs=0.06)


def draw(kind: str, *given: str) -> None:
    argv = [f"kind={kind}", *given]
    run_command(picture_command, schema_of(argv), argv=argv)


def test_models_are_drawn_side_by_side(tmp_path):
    write_webdataset(tmp_path / "data" / "demo_fluent", None, [[f"label {i}"] for i in range(8)], masks=True)
    models = [write_model(tmp_path / f"{kind}.safetensors", kind) for kind in ("pooled", "token_wise")]
    picture = tmp_path / "side.png"
    argv = [f"model={models[0]}", f"others={models[1]}", f"root={tmp_path / 'data'}", f"out={picture}"]
    argv += [f"data={EVAL / 'demo_fluent.yaml'}", f"prompts={EVAL / 'prompts.yaml'}", "examples=2"]
    for wrong in ("labels=[CLIP]", "labels=[CLIP,CLIP]", f"others={models[0]}"):
        with pytest.raises(SystemExit):
            draw("alignment", *argv, wrong)
    draw("alignment", *argv, "labels=[CLIP,FILIP]", "columns=5")
    assert Image.open(picture).width == 4 * 320 + 5 * 26  # two comparisons in a row
