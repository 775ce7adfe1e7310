"""Scoring for evaluation: block by block it is the same problem."""

import pytest
import torch

from filip.interaction import late_interaction, score
from tests.interaction.problems import random_lengths, random_problem


def test_blocks_give_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("filip.interaction.scoring.BLOCK_IMAGES", 4)
    monkeypatch.setattr("filip.interaction.scoring._BLOCK_TEXTS", 5)
    problem = random_problem(11, 7, random_lengths(13, 1, 20), 16)
    problem.image_tokens.requires_grad_()
    done: list[int] = []
    mask = torch.arange(7) < torch.arange(1, 12)[:, None] % 7 + 1
    found = score(*problem, image_mask=mask, progress=done.append)
    expected = late_interaction(*problem, image_mask=mask, backend="reference")
    assert not found.i2t.requires_grad
    torch.testing.assert_close(found.i2t, expected.i2t.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.t2i, expected.t2i.detach(), rtol=1e-5, atol=1e-6)
    assert sum(done) == 11 * 13 and len(done) == 3 * 3


def test_one_block_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def spy(image: torch.Tensor, text: torch.Tensor, lengths: torch.Tensor, **options: object) -> object:
        shapes.append((len(image), len(lengths)))
        return late_interaction(image, text, lengths, **options)

    monkeypatch.setattr("filip.interaction.scoring.late_interaction", spy)
    score(*random_problem(300, 2, [1] * 600, 16), backend="tiled")
    assert max(i for i, _ in shapes) <= 128 and max(t for _, t in shapes) <= 256
    assert sum(i * t for i, t in shapes) == 300 * 600
