"""The paper's top-25 % of tokens, against its definition in loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from late_interaction import late_interaction, pack_tokens
from late_interaction.token_selection import SCORES, choose_tokens, select_tokens, token_scores
from tests.interaction.problems import random_problem


@pytest.mark.parametrize("keep_ratio", [0.25, 0.5, 0.01])
def test_keeps_the_best_of_each_item(keep_ratio: float) -> None:
    image, text, lengths = random_problem(4, 10, [3, 8, 1, 5], 16)
    selected_image, selected_text, selected_lengths = select_tokens(image, text, lengths, keep_ratio)
    products = image.double() @ text.double().T  # [4, 10, 17]
    start = 0
    for j, length in enumerate(lengths.tolist()):
        count = max(1, math.ceil(keep_ratio * length))
        best = products[:, :, start : start + length].amax((0, 1)).topk(count).indices.sort().values
        own = selected_text.split(selected_lengths.tolist())[j]
        assert torch.equal(own, text[start : start + length][best])
        start += length
    for i in range(4):
        best = products[i].amax(1).topk(max(1, math.ceil(keep_ratio * 10))).indices.sort().values
        assert torch.equal(selected_image[i], image[i][best])


def test_scores_do_not_depend_on_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text, _ = random_problem(6, 9, [4, 11, 7], 16)
    whole = token_scores(image, text)
    monkeypatch.setattr("late_interaction.token_selection._TILE_ELEMENTS", 50)
    for a, b in zip(whole, token_scores(image, text), strict=True):
        torch.testing.assert_close(a, b)


def test_gradient_reaches_the_kept_tokens_only() -> None:
    image, text, lengths = random_problem(3, 8, [4, 4, 4], 16)
    image.requires_grad_()
    text.requires_grad_()
    selected = select_tokens(image, text, lengths, 0.25)
    similarity = late_interaction(*selected)
    (similarity.i2t.sum() + similarity.t2i.sum()).backward()
    assert image.grad is not None and text.grad is not None
    assert ((image.grad != 0).any(-1).sum(1) == 2).all()
    assert [int((part != 0).any(-1).sum()) for part in text.grad.split([4, 4, 4])] == [1, 1, 1]


def test_the_ratio_is_rounded_up_but_not_by_binary_dust() -> None:
    image, text, lengths = random_problem(2, 100, [100, 7], 16)
    selected_image, _, selected_lengths = select_tokens(image, text, lengths, 0.07)
    assert selected_image.shape[1] == 7 and selected_lengths.tolist() == [7, 1]


def test_all_tokens_means_the_same_tensors() -> None:
    image, text, lengths = random_problem(2, 3, [2, 4], 16)
    assert select_tokens(image, text, lengths, 1.0) == (image, text, lengths)
    for keep_ratio in (0, -0.5, 1.5, float("nan")):
        with pytest.raises(ValueError, match="keep_ratio must be in"):
            select_tokens(image, text, lengths, keep_ratio)


def test_a_minimum_keeps_short_captions_whole() -> None:
    image, text, lengths = random_problem(2, 12, [3, 8, 40], 16)
    selected_image, selected_text, selected_lengths = select_tokens(image, text, lengths, 0.25, minimum=6)
    assert selected_image.shape[1] == 6 and selected_lengths.tolist() == [3, 6, 10]
    assert torch.equal(selected_text[:3], text[:3])
    with pytest.raises(ValueError, match="minimum must be at least 1"):
        select_tokens(image, text, lengths, 0.25, minimum=0)


def test_contrast_prefers_a_word_over_a_token_that_is_close_to_everything() -> None:
    axes = torch.eye(6)
    image = F.normalize(axes[:4] + 2 * axes[5], dim=1)[:, None]  # one patch, one thing each
    text = F.normalize(axes[:4] + axes[5] / 2, dim=1)
    captions = torch.stack([axes[5].expand(4, 6), text], dim=1)  # 0.89 to every patch; 0.8 to one, 0.4 to others
    lengths = torch.full((4,), 2)
    packed = pack_tokens(captions, lengths)
    chosen = {s: choose_tokens(image, packed, lengths, 0.5, score=s).text_rows % 2 for s in ("maximum", "contrast")}
    assert chosen["maximum"].tolist() == [0, 0, 0, 0]
    assert chosen["contrast"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("score", SCORES)
def test_a_score_does_not_know_which_text_belongs_to_an_image(score: str) -> None:
    image, text, lengths = random_problem(3, 10, [4, 4, 4], 16)
    other = text.view(3, 4, 16)[[2, 0, 1]].flatten(0, 1)
    draws = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    rows = [
        choose_tokens(image, t, lengths, 0.3, score=score, generator=g).image_rows.tolist()
        for t, g in zip((text, other, text), draws, strict=True)
    ]
    assert rows[0] == rows[1] and (rows[0] != rows[2]) == (score == "random")
    with pytest.raises(ValueError, match="score='own' is unknown; choose one of maximum, contrast, random"):
        token_scores(image, text, "own")
