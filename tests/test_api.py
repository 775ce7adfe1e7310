"""``from filip import load``: the same numbers as the evaluation's, from paths, PIL images and tensors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import filip
from filip import api, load
from filip.errors import UserError
from filip.eval.cards import load_card
from filip.eval.datasets import batches
from filip.eval.formats import open_set
from filip.eval.scorer import load_scorer
from tests.eval.miniature import SIDE, picture, write_model, write_webdataset

TEXTS = ["a photo of a cat.", "a black dog runs on the beach", "cat", "a photo of a cat."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    for interaction in ("token_wise", "pooled"):
        write_model(folder / f"{interaction}.safetensors", interaction)
    for number in range(5):
        picture(number, 48).save(folder / f"{number}.png")
    return folder


def pictures(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


@pytest.mark.parametrize("interaction", ["token_wise", "pooled"])
def test_similarities_equal_the_evaluations_to_the_bit(
    interaction: str, folder: Path, tmp_path: Path
) -> None:
    """From a test set on disk through the evaluation's reader and scorer, and through three lines of Python."""
    path = folder / f"{interaction}.safetensors"
    images = write_webdataset(tmp_path / "demo_fluent", None, [[text] for text in TEXTS])
    scorer = load_scorer(str(path))
    data = open_set(load_card("demo_fluent"), tmp_path)
    features = torch.cat([scorer.encode_images(batch.pixels) for batch in batches(data, scorer.transform, 3)])
    expected = scorer.similarity(features, scorer.encode_texts(TEXTS))
    found = load(path, device="cpu").similarity(images, TEXTS, batch_size=3)
    assert found.i2t.shape == found.t2i.shape == (4, 4)
    assert torch.equal(found.i2t, expected.i2t) and torch.equal(found.t2i, expected.t2i)


@pytest.mark.parametrize("interaction", ["token_wise", "pooled"])
def test_paths_pictures_and_tensors_are_encoded_alike(interaction: str, folder: Path) -> None:
    model = load(str(folder / f"{interaction}.safetensors"), device="cpu")
    paths = pictures(folder)
    expected = model.encode_images(paths)
    assert expected.shape == ((5, 16, 16) if interaction == "token_wise" else (5, 16))
    assert torch.allclose(expected.norm(dim=-1), torch.ones(expected.shape[:-1]))
    opened = [Image.open(path) for path in paths]
    raw = [torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1) for image in opened]
    ready = torch.stack(
        [load_scorer(str(folder / f"{interaction}.safetensors")).transform(i) for i in opened]
    )
    for images in (opened, raw, torch.stack(raw), ready, list(ready), [str(path) for path in paths]):
        assert torch.equal(model.encode_images(images), expected)
    assert torch.allclose(model.encode_images(paths, batch_size=2), expected, atol=1e-6)


def test_similarity_takes_what_was_encoded_before(folder: Path) -> None:
    for interaction in ("token_wise", "pooled"):
        model = load(folder / f"{interaction}.safetensors")
        images, texts = model.encode_images(pictures(folder)), model.encode_texts(TEXTS)
        assert len(texts) == 4
        once, again = model.similarity(pictures(folder), TEXTS), model.similarity(images, texts)
        assert torch.equal(once.i2t, again.i2t) and torch.equal(once.t2i, again.t2i)
        assert torch.equal(once.i2t[:, 0], once.i2t[:, 3]), "equal texts, equal columns"


def test_alignment_is_the_one_behind_the_similarity(folder: Path) -> None:
    model = load(folder / "token_wise.safetensors")
    path = pictures(folder)[0]
    found = model.align(path, TEXTS[1])
    assert found.tokens == ["[BOS]", "a", "black", "dog", "runs", "on", "the", "beach", "[EOS]"]
    assert found.similarity.shape == (4, 4, 9)
    scores = model.similarity([path], [TEXTS[1]])
    assert found.similarity.amax(2).mean().item() == pytest.approx(scores.i2t.item(), abs=1e-6)
    assert found.similarity.amax((0, 1)).mean().item() == pytest.approx(scores.t2i.item(), abs=1e-6)
    for row in range(4):
        for column in range(4):
            cosines = found.similarity[row, column]
            assert cosines[found.best_token[row, column]] == cosines.max()
            assert found.words[row][column] == found.tokens[int(cosines.argmax())]
    for token, (row, column) in enumerate(found.best_patch.tolist()):
        assert found.similarity[row, column, token] == found.similarity[:, :, token].max()
    assert [line.split() for line in str(found).splitlines()] == found.words


def test_alignment_of_a_pooled_model_is_refused_in_words(folder: Path) -> None:
    with pytest.raises(UserError, match=r"pooled is a pooled model.*load a token-wise one"):
        load(folder / "pooled.safetensors").align(pictures(folder)[0], "a cat")


def test_another_resolution_gives_another_grid(folder: Path) -> None:
    model = load(folder / "token_wise.safetensors", image_size=48)
    assert model.image_size == 48
    assert model.encode_images(pictures(folder)).shape == (5, 36, 16)
    assert model.align(pictures(folder)[0], "a cat").best_token.shape == (6, 6)


def test_what_is_no_image_and_no_text_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    model = load(folder / "token_wise.safetensors")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    for images, error, message in (
        (["nowhere.jpg"], UserError, "no image at nowhere.jpg"),
        ([broken], UserError, "broken.png cannot be read as an image"),
        ([torch.zeros(3, SIDE + 8, SIDE)], ValueError, r"have to be \[3, 32, 32\]"),
        ([torch.zeros(SIDE, SIDE)], ValueError, r"shape \[32, 32\] is not an image"),
        ([17], TypeError, "int is not an image"),
        ("cat.jpg", TypeError, r"give \[image\]"),
        (torch.zeros(3, SIDE, SIDE), TypeError, r"give \[image\]"),
        ([], ValueError, "no images"),
    ):
        with pytest.raises(error, match=message):
            model.encode_images(images)
    with pytest.raises(TypeError, match=r"give \[text\]"):
        model.encode_texts("a cat")
    with pytest.raises(ValueError, match="no texts"):
        model.encode_texts([])
    with pytest.raises(UserError, match=r"no model at nowhere\.safetensors"):
        load("nowhere.safetensors")


def test_names_of_the_package_are_those_of_the_api() -> None:
    assert (load, filip.Model, filip.Alignment) == (api.load, api.Model, api.Alignment)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        filip.laod  # noqa: B018
