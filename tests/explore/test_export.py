"""The page as a file: what is inside, and that its 8-bit numbers rank as the models do."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from filip.cli.command import run_command
from filip.common.errors import UserError
from filip.eval.scorer import load_scorer
from filip.explore.export import ExplorerExport
from filip.explore.export import main as export
from filip.explore.names import named_things
from filip.explore.packing import pack
from late_interaction import score
from tests.eval.miniature import picture, write_model
from tests.explore.conftest import CAPTIONS, Prepared


def unpack(integers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return what the page computes from the result of ``pack``."""
    return integers.float() * scales[:, None]


def data_of(page: Path) -> dict:
    text = page.read_text()
    (result,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(result)


def floats(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4")


def test_the_8_bit_ranking_has_the_same_first_image_for_99_texts_of_100() -> None:
    """Tokens as trained models have them: around a common direction, within a subspace, a text's like its image's."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 20, (300,), generator=generator)
    turn = torch.linalg.qr(torch.randn(128, 128, generator=generator))[0]
    spread = torch.linspace(0, -6, 128).exp()[:, None] * turn  # no axis is special to a model
    centre = 0.7 * F.normalize(torch.randn(128, generator=generator) @ spread, dim=0)

    def around(tokens: torch.Tensor, noise: float, *shape: int) -> torch.Tensor:
        return F.normalize(tokens + noise * torch.randn(*shape, 128, generator=generator) @ spread, dim=-1)

    images = around(centre, 0.15, 300, 36)
    owner = torch.arange(300).repeat_interleave(lengths)
    texts = around(images[owner, torch.randint(36, owner.shape, generator=generator)], 0.3, len(owner))
    exact = score(images, texts, lengths).t2i

    def rounded(*against: torch.Tensor | None) -> torch.Tensor:
        packed_images = unpack(*pack(images.flatten(0, 1), against[0])).view_as(images)
        return score(packed_images, unpack(*pack(texts, against[1])), lengths).t2i

    result, plain = rounded(texts, images.flatten(0, 1)), rounded(None, None)
    assert (exact.argmax(0) == result.argmax(0)).float().mean() >= 0.99
    assert (exact - result).std() < (exact - plain).std() / 2, "the errors cancel in the products"


def test_the_page_has_the_tokens_of_both_models_and_asks_nobody(prepared: Prepared) -> None:
    data = data_of(prepared.page)
    clip, filip = data["models"]
    assert [model["label"] for model in data["models"]] == ["CLIP", "FILIP"]
    assert data["texts"] == data["images"] == CAPTIONS and data["own"] == list(range(len(CAPTIONS)))
    assert not clip["token_wise"] and filip["token_wise"] and clip["grid"] == filip["grid"] == [4, 4]
    for number, model in enumerate(data["models"]):
        scorer = load_scorer(prepared.models[number])
        pixels = torch.stack([scorer.transform(image) for image in prepared.pictures])
        values = np.frombuffer(base64.b64decode(model["image_tokens"]["values"]), np.int8).reshape(-1, 16)
        result = torch.from_numpy(values * floats(model["image_tokens"]["scales"])[:, None])
        expected = scorer.encoder.patches(pixels).flatten(0, 1)
        assert torch.allclose(result, expected, atol=0.02)
        assert model["text_tower"] and model["image_tower"] and "text_tokens" not in model
    assert np.allclose(floats(clip["image_vectors"]).reshape(6, 16) ** 2 @ np.ones(16), 1, atol=1e-5)
    text = prepared.page.read_text()
    assert "connect-src 'none'" in text and not re.search(r"https?://", text)
    assert text.count("</script>") == 2, "the caption with a </script> ends none"


def test_names_are_the_things_that_are_known_or_the_words_that_mean_something(prepared: Prepared) -> None:
    encoder = load_scorer(prepared.models[1]).encoder
    text = "a slot machine and a dog, here"
    known = named_things(encoder, text, ["dog", "slot machine"])
    assert [name["label"] for name in known] == ["slot machine", "dog"]
    spoken = encoder.tokens(text)
    assert [[spoken[token] for token in name["tokens"]] for name in known] == [["slot", "machine"], ["dog"]]
    assert [name["label"] for name in named_things(encoder, text)] == ["slot", "machine", "dog"]
    assert [n["label"] for n in named_things(encoder, text, ["whale"])] == ["slot", "machine", "dog"]
    assert named_things(encoder, "of the") == [] and len(named_things(encoder, "cat dog " * 9)) == 8


def test_a_folder_has_its_captions_beside_it_and_a_file_of_texts(tmp_path: Path) -> None:
    photos = tmp_path / "my photos"
    (photos / "trip").mkdir(parents=True)
    picture(1, 48).save(photos / "a.png")
    picture(2, 48).save(photos / "trip" / "b.jpg")
    (photos / "a.txt").write_text("a cat\nthe same cat\n")
    (photos / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "texts.txt").write_text("a dog\n\na cat\n")
    model = write_model(tmp_path / "m.safetensors")
    arguments = [
        f"models=[{model}]",
        f"images={photos}",
        f"texts={tmp_path / 'texts.txt'}",
        f"out={tmp_path / 'p.html'}",
    ]
    run_command(export, ExplorerExport, argv=arguments)
    data = data_of(tmp_path / "p.html")
    assert data["title"] == "my photos" and data["texts"] == ["a cat", "the same cat", "a dog"]
    assert data["images"] == ["a cat", "trip/b.jpg"] and data["own"] == [0, None]
    (photos / "a.txt").unlink()
    with pytest.raises(UserError, match=r"towers=none.*texts=FILE"):
        export(ExplorerExport(models=[model], images=str(photos), towers="none", out="unused"))
