"""Pooled and token-wise scorers: the definition, and the text tokens that count."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from filip.eval.protocols.retrieval import patch_cosine
from filip.eval.protocols.zero_shot import class_scores
from filip.eval.scorer import TokenScorer, load_scorer
from filip.eval.text_tokens import kept_tokens
from filip.text.tokenizer import decode_token, tokenize
from tests.eval.miniature import picture, write_model

EVAL = Path(__file__).parents[2] / "eval"


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_token_wise_scores_are_the_definition(tmp_path):
    scorer = load_scorer(write_model(tmp_path / "m.safetensors"))
    assert isinstance(scorer, TokenScorer)
    images = scorer.encode_images(torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3)))
    names = ["a cat", "two dogs run over a field", "x"]
    texts = scorer.encode_texts(names)
    assert texts.lengths is not None and len(texts) == 3
    similarity = scorer.similarity(images, texts)
    for i in range(3):
        for j, tokens in enumerate(texts.values.split(texts.lengths.tolist())):
            product = images[i].double() @ tokens.double().T
            assert float(similarity.i2t[i, j]) == pytest.approx(float(product.amax(1).mean()), abs=1e-5)
            assert float(similarity.t2i[i, j]) == pytest.approx(float(product.amax(0).mean()), abs=1e-5)


def test_the_cosine_of_patches_is_over_all_pairs_of_an_image_without_its_padding():
    images = unit(4, 6, 8)
    images[1, 2:] = 0  # two patches
    images[2] = images[2, :1]  # collapsed
    images[3, 1:] = 0  # one patch, no pair
    means = []
    for image, count in zip(images[:3], (6, 2, 6), strict=True):
        means.append(torch.stack([a @ b for a, b in itertools.combinations(image[:count], 2)]).mean())
    expected = float(torch.stack(means).mean())
    assert patch_cosine(images) == {"patch_cosine": pytest.approx(expected, abs=6e-4)}
    assert patch_cosine(images[:, :1]) == {}


def test_class_score_is_the_mean_of_scores_over_prompts(tmp_path):
    scorer = load_scorer(write_model(tmp_path / "m.safetensors"))
    images = scorer.encode_images(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4)))
    prompts = ["a photo of a cat.", "cat", "a photo of a dog.", "dog"]
    scores = class_scores(scorer, images, scorer.encode_texts(prompts), 2)
    single = [scorer.similarity(images, scorer.encode_texts([p])) for p in prompts]
    for mean, each in ((scores.i2t, [s.i2t for s in single]), (scores.t2i, [s.t2i for s in single])):
        expected = [each[0] + each[1], each[2] + each[3]]
        assert torch.allclose(mean, torch.cat(expected, 1) / 2, atol=1e-6)


def test_equal_texts_get_equal_features_whatever_is_beside_them(tmp_path):
    texts = load_scorer(write_model(tmp_path / "m.safetensors")).encode_texts(["b", "a cat", "b", "ccc", "a cat"])
    assert texts.lengths is not None
    rows = texts.values.split(texts.lengths.tolist())
    assert torch.equal(rows[0], rows[2]) and torch.equal(rows[1], rows[4]) and rows[0].shape != rows[1].shape


TEXTS = ["a red bicycle in front of the lighthouse, at night.", "of the", "", "antidisestablishmentarianism!"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (TEXTS[0], "red bicycle lighthouse night"),
        ("the tv is on a tv-stand", "tv tv stand"),
        ("of the", "of the"),  # nothing is named: all words stay
        ("two forests and an infield", "two forests infield"),  # "for" and "in" begin these words
    ],
)
def test_content_keeps_the_words_that_name_something(text, names):
    tokens = [decode_token(i) for i in tokenize([text], 77)[0][0].tolist()]
    tokens = tokens[: tokens.index("[EOS]") + 1]
    kept = kept_tokens(text, tokens, "content")
    results = [token for token, keep in zip(tokens, kept, strict=True) if keep]
    assert "".join(results) == names.replace(" ", "")
    assert kept_tokens(text, tokens, "without_ends") == [False, *[True] * (len(tokens) - 2), False]
    assert all(kept_tokens(text, tokens, "all"))


def test_a_score_without_ends_is_the_mean_over_the_other_tokens(tmp_path):
    scorer = load_scorer(write_model(tmp_path / "m.safetensors"))
    images = scorer.encode_images(torch.stack([scorer.transform(picture(i)) for i in range(3)]))
    whole = scorer.encode_texts(TEXTS)
    assert whole.lengths is not None
    scorer.text_tokens = "without_ends"
    without = scorer.similarity(images, scorer.encode_texts(TEXTS))
    for number, tokens in enumerate(whole.values.split(whole.lengths.tolist())):
        inner = tokens[1:-1] if len(tokens) > 2 else tokens  # an empty text has its ends only
        products = images.double() @ inner.double().T
        assert without.t2i[:, number].double() == pytest.approx(products.amax(1).mean(1), abs=1e-6)
        assert without.i2t[:, number].double() == pytest.approx(products.amax(2).mean(1), abs=1e-6)
