"""The contrastive loss against open_clip's, against the formula with soft targets, and its numerics."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from late_interaction import (
    LateInteractionLoss,
    Similarity,
    SmoothMaximum,
    contrastive_loss,
    late_interaction,
    pooled_similarity,
)
from tests.interaction.problems import random_problem


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_accuracy_counts_any_positive() -> None:
    i2t = torch.tensor([[0.0, 1.0, 0.0], [0.0, 2.0, 3.0], [0.0, 1.0, 2.0]])
    similarity = Similarity(i2t, i2t)
    hard = contrastive_loss(similarity, torch.tensor(1.0))
    soft = contrastive_loss(similarity, torch.tensor(1.0), ids=torch.tensor([5, 5, 6]))
    assert float(hard.i2t_accuracy) == pytest.approx(1 / 3)  # only the third row
    assert float(soft.i2t_accuracy) == pytest.approx(2 / 3)  # the first row hits its other positive
    # Columns: the first is all zero (the first image wins), the second won by 1, the third by 1.
    assert float(hard.t2i_accuracy) == pytest.approx(2 / 3)


def test_loss_is_float32_whatever_comes_in() -> None:
    image, text = unit(6, 16, seed=3).bfloat16(), unit(6, 16, seed=4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = contrastive_loss(pooled_similarity(image, text), torch.tensor([100.0]).bfloat16())
    exact = contrastive_loss(pooled_similarity(image.double(), text.double()), torch.tensor(100.0))
    assert output.loss.dtype == torch.float32
    assert float(output.loss) == pytest.approx(float(exact.loss), rel=1e-5)


@pytest.mark.parametrize("ids", [None, torch.tensor([5, 5, 6])])
def test_smoothed_labels_give_every_candidate_a_share(ids: torch.Tensor | None) -> None:
    similarity, every, smoothing = Similarity(torch.randn(3, 4), torch.randn(4, 3)), torch.tensor([7, 5, 5, 6]), 0.1
    target = torch.eye(4)[1:] if ids is None else (ids[:, None] == every).float()
    target = (1 - smoothing) * target / target.sum(1, keepdim=True) + smoothing / 4
    logits = 3 * torch.stack([similarity.i2t, similarity.t2i.T])
    expected = -(target * logits.log_softmax(2)).sum(2).mean()
    every_id = None if ids is None else every
    output = contrastive_loss(
        similarity, torch.tensor(3.0), offset=1, ids=ids, all_ids=every_id, label_smoothing=smoothing
    )
    torch.testing.assert_close(output.loss, expected)


def test_mistakes_are_named() -> None:
    square = Similarity(torch.zeros(3, 5), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="needs t2i"):
        contrastive_loss(square, torch.tensor(1.0))
    rows = Similarity(torch.zeros(3, 5), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="offset 3"):
        contrastive_loss(rows, torch.tensor(1.0), offset=3)
    with pytest.raises(ValueError, match="at this rank's offset"):
        contrastive_loss(rows, torch.tensor(1.0), ids=torch.arange(3), all_ids=torch.arange(1, 6))
    with pytest.raises(ValueError, match="empty batch"):
        pooled_similarity(torch.zeros(0, 4), torch.zeros(2, 4))


def test_the_module_is_the_function_with_a_temperature_that_can_come_down_again() -> None:
    problem = random_problem(5, 9, [3, 6, 2, 4, 5], 16)
    ids = torch.tensor([1, 2, 1, 3, 4])
    module = LateInteractionLoss(scale=100.0)
    with torch.no_grad():
        module.log_scale += 1
    result = module(*problem, ids)
    expected = contrastive_loss(late_interaction(*problem), torch.tensor(100.0), ids=ids)
    torch.testing.assert_close(result.loss, expected.loss, rtol=1e-5, atol=0)
    result.loss.backward()
    assert module.log_scale.grad is not None and float(module.log_scale.grad) != 0
    with pytest.raises(ValueError, match="0 < scale <= largest_scale"):
        LateInteractionLoss(scale=200.0)


def test_the_module_compares_directions_unless_told_otherwise() -> None:
    image, text, lengths = random_problem(5, 9, [3, 6, 2, 4, 5], 16)
    longer = image * 7, text * torch.linspace(0.1, 3, len(text))[:, None], lengths
    directions = F.normalize(image, dim=-1), F.normalize(text, dim=-1), lengths
    expected = LateInteractionLoss(normalize=False)(*directions).loss
    torch.testing.assert_close(LateInteractionLoss()(*longer).loss, expected)
    assert abs(LateInteractionLoss(normalize=False)(*longer).loss - expected) > 0.1


@pytest.mark.parametrize("ids", [None, torch.tensor([1, 2, 1])])
def test_negatives_are_further_columns_of_their_own_image(ids: torch.Tensor | None) -> None:
    image, text, lengths = random_problem(3, 9, [3, 6, 2], 16)
    negatives, mask = unit(3, 2, 5, 16, seed=9), torch.arange(5) < torch.tensor([[[1], [5]], [[2], [4]], [[3], [3]]])
    negatives = negatives.masked_fill(~mask[..., None], torch.nan).requires_grad_()
    maximum = None if ids is None else SmoothMaximum(0.05)
    module = LateInteractionLoss(scale=5.0, maximum=maximum)
    result = module(image, text, lengths, ids, negatives=negatives, negatives_mask=mask)
    i2t, t2i = late_interaction(image, text, lengths, maximum=maximum)

    def column(products: Tensor) -> Tensor:
        if maximum is None:
            return products.amax(1).mean()
        return (0.05 * ((products / 0.05).logsumexp(1) - math.log(products.shape[1]))).mean()

    columns = [[column(image[i] @ negatives.detach()[i, k, mask[i, k]].T) for k in range(2)] for i in range(3)]
    logits = 5 * torch.cat([i2t, torch.tensor(columns)], dim=1)
    target = torch.eye(3) if ids is None else (ids[:, None] == ids) / (ids[:, None] == ids).sum(1, keepdim=True)
    expected = F.cross_entropy(logits, torch.cat([target.float(), torch.zeros(3, 2)], dim=1))
    torch.testing.assert_close(result.i2t_loss, expected)
    torch.testing.assert_close(result.t2i_loss, F.cross_entropy(5 * t2i.T, target.float()))
    result.loss.backward()
    assert negatives.grad is not None and bool(negatives.grad[mask].any()) and not negatives.grad[~mask].any()


@pytest.mark.parametrize("lengths", [False, True])
def test_padding_that_is_nan_costs_the_module_nothing(lengths: bool) -> None:
    image, text = unit(3, 5, 16), unit(3, 4, 16, seed=1)
    masks = torch.arange(5) < torch.tensor([[5], [2], [3]]), torch.arange(4) < torch.tensor([[1], [4], [2]])
    results = []
    for filling in (torch.nan, 1.0):
        sides = [
            side.masked_fill(~mask[..., None], filling).requires_grad_()
            for side, mask in zip((image, text), masks, strict=True)
        ]
        of_texts = masks[1].sum(1) if lengths else masks[1]
        loss = LateInteractionLoss()(*sides, of_texts, image_mask=masks[0]).loss
        results.append([loss, *torch.autograd.grad(loss, sides)])
    assert all(map(torch.equal, *results)) and not results[0][1][~masks[0]].any()
