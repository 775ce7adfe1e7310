"""Ids and lengths against open_clip's tokenizer, an independent implementation of the same vocabulary."""

import html
import random

import ftfy
import open_clip
import pytest
import torch

from filip.text import tokenizer
from filip.text.tokenizer import BOS, EOS, clean, token_counts, token_texts, tokenize

HAND_PICKED = [
    "a photo of a cat", "", "   spaces \t tabs \n and lines  ", "Isn't it? They're here; I'd've, we'll",
    "price: $3,000.50 (50% off!!!)", "😀 grinning face 👩🏽‍🚀 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇧🇷",
    "cafe\u0301 café naïve Łódź ß İstanbul", "Tom &amp; Jerry &amp;lt;b&amp;gt; &eacute; &#39;",
    "schÃ¶n â€“ mojibake", "ﬁ ﬂ ligatures, “curly” ‘quotes’ … ellipsis", "中文 日本語 한국어 русский עברית العربية",
    "hashtag#one@two_three-four/five\\six", "MiXeD CaSe AND SHOUTING", "!!! ! !", "0", "1234567890" * 5,
    "\u200bzero\u200bwidth\u00a0space", "half width ＡＢＣ", "word " * 200,
    "supercalifragilisticexpialidocious" * 10, "<end_of_text> inside <start_of_text>",
    "a&b a&b; &nbsp;x&copy;", "tail&amp", "control\x07bell \x1b[31mred",
]  # fmt: skip


def random_strings(n: int) -> list[str]:
    rng = random.Random(0)
    pieces = [
        "cat", "Dog", " ", "  ", "'s", "😀", "👍🏿", "é", "e\u0301", "&amp;", "&lt;", "&#233;", "\n", "-", "...", "42",
        "ß", "Ω", "中", "\u00a0", "’", "“", "ﬁ", "A", "z", "_", "@", "ã©", "Â£", ";", "&", "Ж", "ש", "ท",
    ]  # fmt: skip
    return ["".join(rng.choice(pieces) for _ in range(rng.randint(1, 60))) for _ in range(n)]


@pytest.fixture(scope="module")
def reference() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()


@pytest.mark.parametrize("context_length", [77, 16])
def test_ids_equal_open_clips(reference: open_clip.SimpleTokenizer, context_length: int) -> None:
    texts = HAND_PICKED + random_strings(2000)
    expected = reference(texts, context_length=context_length)
    ids, lengths = tokenize(texts, context_length)
    padded = torch.nn.functional.pad(ids, (0, context_length - ids.shape[1]))
    for text, ours, theirs in zip(texts, padded, expected, strict=True):
        assert torch.equal(ours, theirs), text
    assert torch.equal(lengths, expected.argmax(dim=1) + 1)  # [EOS] has the highest id


def test_padding_is_to_the_longest() -> None:
    ids, lengths = tokenize(["a cat", "one two three four", ""])
    assert ids.dtype == lengths.dtype == torch.int64
    assert ids.shape == (3, 6) and ids[2].tolist() == [BOS, EOS, 0, 0, 0, 0]


def test_the_short_cut_of_cleaning_changes_nothing() -> None:
    """Printable ASCII without '&' skips ftfy; ftfy must have had nothing to do there."""
    rng = random.Random(1)
    letters = [chr(i) for i in range(32, 127) if chr(i) != "&"]
    for _ in range(500):
        text = "".join(rng.choice(letters) for _ in range(rng.randint(0, 80)))
        assert clean(text) == html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def test_every_token_reads_as_open_clip_decodes_it(reference: open_clip.SimpleTokenizer) -> None:
    assert list(token_texts()[:BOS]) == [reference.decode([token]) for token in range(BOS)]
    assert token_texts()[BOS:] == ("", "")


def test_counts_are_uncut_up_to_the_most_that_is_asked() -> None:
    assert token_counts(["", "a cat", "word " * 200], most=100) == [2, 4, 100]


@pytest.mark.parametrize("text", ["a<end_of_text>b", "!!<end_of_text>", "x <Start_Of_Text>'s <start_of_text"])
def test_names_of_special_tokens_inside_of_words(reference: open_clip.SimpleTokenizer, text: str) -> None:
    ids = [BOS, *reference.encode(text), EOS]
    assert tokenizer.tokenize_numpy([text], len(ids))[0][0].tolist() == ids
