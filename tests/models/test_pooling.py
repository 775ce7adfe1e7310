"""One vector of all tokens: against loops over samples, and in what models and the loss make of it."""

import pytest
import torch
import torch.nn.functional as F

from filip.common.errors import UserError
from filip.eval.encoders import FilipEncoder
from filip.explore.towers import NotInPage, own_model
from filip.models import ModelConfig, TextFeatures, build_model, load_preset
from filip.models.config import config_from_dict
from filip.models.pooling import Pooling
from filip.text.tokenizer import tokenize

CAPTIONS = ["a dog", "two cats sleep below a very old wooden table", "snow"]


def config(pooling: str, interaction: str = "pooled", cls: bool = True) -> ModelConfig:
    result = load_preset("tiny")
    result.pooling, result.interaction = pooling, interaction
    if not cls:
        result.image.options = {"class_token": False}
    return result


def drawn(pool: Pooling) -> Pooling:
    torch.manual_seed(1)
    if pool.query is not None:
        torch.nn.init.normal_(pool.query)
    return pool


@pytest.mark.parametrize("kind", ["mean", "attention"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vector_is_the_weighted_mean_of_its_own_tokens(kind: str, dtype: torch.dtype) -> None:
    pool = drawn(Pooling(6, kind))
    lengths = torch.tensor([3, 1, 7, 2])
    tokens = (5 * torch.randn(13, 6)).to(dtype)
    for result, own in zip(pool(tokens, lengths), tokens.double().split(lengths.tolist()), strict=True):
        weights = torch.full((len(own),), 1 / len(own), dtype=torch.float64)
        if pool.query is not None:
            weights = (own @ pool.query.double() / 6**0.5).softmax(0)
        torch.testing.assert_close(result.double(), weights @ own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["heads", "relu", "bilinear"])
def test_a_vector_of_more_numbers_than_a_token(kind: str) -> None:
    torch.manual_seed(0)
    settings = config(kind)
    settings.pool_queries, dim = 3, settings.embed_dim
    model = build_model(settings).eval()

    def expected(pool: Pooling, own: torch.Tensor) -> torch.Tensor:
        if kind == "heads":
            each = zip(pool.query, pool.heads, strict=True)
            return torch.cat([(own @ q / dim**0.5).softmax(0) @ own @ w for q, w in each])
        made = own @ pool.features.T
        if kind == "relu":
            return torch.where(made > 0, made, 0).mean(0)
        half = made.shape[1] // 2
        return (made[:, :half].T @ made[:, half:]).flatten()  # the sum of outer products

    pixels = torch.randn(2, 3, model.image_size, model.image_size)
    ids, lengths = tokenize(CAPTIONS)
    words = model.text(ids, lengths).split(lengths.tolist())
    for pool, tokens, vectors in (
        (model.image_pool, model.image(pixels)[:, model.image.prefix_tokens :], model.encode_image(pixels)),
        (model.text_pool, words, model.encode_text(ids, lengths)),
    ):
        for own, vector in zip(tokens, vectors, strict=True):
            torch.testing.assert_close(vector, F.normalize(expected(pool, own), dim=0))
    (vectors.sum() + model.encode_image(pixels).sum()).backward()
    assert all(p.grad.abs().sum() > 0 for pool in (model.image_pool, model.text_pool) for p in pool.parameters())
    # A word is compared with a patch as one that is pooled alone.
    encoder = FilipEncoder(model, kind)
    alone = model.text_pool(words[0], torch.ones(len(words[0]), dtype=torch.int64))
    torch.testing.assert_close(encoder.words(CAPTIONS)[0], F.normalize(alone, dim=1))
    numbers = {"heads": 3 * dim, "relu": 3 * dim, "bilinear": int((3 * dim) ** 0.5) ** 2}[kind]
    assert encoder.patches(pixels).shape[2] == settings.compared_dim == numbers
    with pytest.raises(NotInPage, match="no pooling but"):
        own_model(encoder)


def test_large_scores_do_not_overflow_and_the_gradient_is_right() -> None:
    pool = Pooling(4, "attention").double()
    torch.nn.init.normal_(pool.query, std=300)
    lengths = torch.tensor([2, 4])
    assert pool(50 * torch.randn(6, 4), lengths).isfinite().all()
    pool = drawn(Pooling(4, "attention"))

    def padded(tokens: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        return torch.stack([(part @ query / 2).softmax(0) @ part for part in tokens.split([2, 4])])

    tokens, upstream = torch.randn(6, 4, requires_grad=True), torch.randn(2, 4)
    result = torch.autograd.grad((pool(tokens, lengths) * upstream).sum(), [tokens, pool.query])
    expected = torch.autograd.grad((padded(tokens, pool.query) * upstream).sum(), [tokens, pool.query])
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("pooling", ["mean", "attention", "heads", "relu", "bilinear"])
def test_a_model_pools_what_it_would_compare_token_wise(pooling: str) -> None:
    torch.manual_seed(0)
    model = build_model(config(pooling)).eval()
    for pool in (model.image_pool, model.text_pool):
        drawn(pool)
    pixels = torch.randn(2, 3, model.image_size, model.image_size)
    ids, lengths = tokenize(CAPTIONS)
    patches = model.image(pixels)[:, model.image.prefix_tokens :]
    each = torch.full((2,), patches.shape[1])
    expected = F.normalize(model.image_pool(patches.flatten(0, 1), each), dim=-1)
    torch.testing.assert_close(model.encode_image(pixels), expected)
    texts = model.encode_text(ids, lengths)
    pooled = model.text_pool(model.text(ids, lengths), lengths)
    torch.testing.assert_close(texts, F.normalize(pooled, dim=-1))
    alone = torch.cat([model.encode_text(*tokenize(caption)) for caption in CAPTIONS])
    torch.testing.assert_close(texts, alone)  # however far a caption is padded
    if pooling == "attention":
        mean = Pooling(texts.shape[1], "mean")(model.text(ids, lengths), lengths)
        assert not torch.allclose(texts, F.normalize(mean, dim=-1))
    with torch.autocast("cpu", torch.bfloat16):
        lower = F.normalize(model.image_pool(patches.flatten(0, 1), each).float(), dim=-1)
    torch.testing.assert_close(lower, expected, atol=0.02, rtol=0)
    # One pass gives the tokens and vectors of two.
    both = model(pixels.repeat(2, 1, 1, 1)[:3], ids, lengths, tokens_and_vectors=True)
    torch.testing.assert_close(both.pooled.text, texts)
    torch.testing.assert_close(both.pooled.image[:2], expected)
    assert isinstance(both.text, TextFeatures)


def test_only_ends_need_a_class_token() -> None:
    build_model(config("mean", cls=False))
    with pytest.raises(UserError, match=r"model\.interaction=pooled needs a \[CLS\] token.*model\.pooling=mean"):
        build_model(config("ends", cls=False))


def test_learned_tokens_are_of_the_patches_alone_and_start_apart() -> None:
    torch.manual_seed(0)
    settings = config("ends", "token_wise")
    settings.embed_dim, settings.reduction = 16, 3
    model = build_model(settings).eval()
    states = model.image(torch.randn(2, 3, model.image_size, model.image_size))
    tokens = model.image_embeddings(states)
    changed = states.clone()
    changed[:, 0] += 1  # the class token
    assert tokens.shape == (2, 3, 16) and torch.equal(model.image_embeddings(changed), tokens) and model.grid == (0, 0)
    assert (tokens @ tokens.transpose(1, 2)).triu(1).max() < 0.999
    with pytest.raises(UserError, match="is about the patches"):
        config_from_dict({"reduction": 3, "interaction": "pooled"})
    with pytest.raises(UserError, match="learned tokens"):
        model.set_interaction("pooled")
    settings.embed_dim = 12
    with pytest.raises(UserError, match="8 groups"):
        build_model(settings)
