"""Which tokens of a text take part in a score: the choice, and what it does to a token-wise model's similarity."""

import pytest
import torch

from filip.errors import UserError
from filip.eval.scorer import load_scorer
from filip.eval.text_tokens import kept_tokens
from filip.tokenizer import decode_token, tokenize
from tests.eval.miniature import picture, write_model

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
    found = [token for token, keep in zip(tokens, kept, strict=True) if keep]
    assert "".join(found) == names.replace(" ", "")
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


def test_a_pooled_model_has_no_tokens_to_leave_out(tmp_path):
    scorer = load_scorer(write_model(tmp_path / "m.safetensors", "pooled"))
    scorer.text_tokens = "content"
    with pytest.raises(UserError, match="has one vector a text"):
        scorer.encode_texts(["a cat"])
