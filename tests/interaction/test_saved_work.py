"""Nothing is computed or kept that nobody asks for; an evaluation scores block by block."""

import pytest
import torch

from late_interaction import distributed_late_interaction, late_interaction, score
from late_interaction.backends import choose_backend
from tests.interaction.available import BACKENDS
from tests.interaction.problems import random_lengths, random_problem, solve, upstream


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frozen", [0, 1])
def test_nothing_is_computed_for_a_frozen_tower(backend: str, frozen: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(6, 9, [4, 5, 11], 32)
    module, seen = choose_backend(problem.image_tokens, 11, backend), []

    def backward(*arguments: object) -> object:
        seen.append(original(*arguments))
        return seen[-1]

    original = module.backward
    monkeypatch.setattr(module, "backward", backward)
    both = solve(problem, backend)
    tokens = [tensor.clone().requires_grad_(side != frozen) for side, tensor in enumerate(problem[:2])]
    similarity = late_interaction(*tokens, problem.text_lengths, backend=backend)
    torch.autograd.backward(similarity, upstream(similarity.i2t.shape))
    assert tokens[frozen].grad is None and torch.equal(tokens[1 - frozen].grad, both[3 - frozen])
    assert seen[1][frozen].numel() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_maps_are_asked_for_where_nobody_differentiates(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(6, 9, [4, 5, 11], 32)
    module = choose_backend(problem.image_tokens, 11, backend)
    original, saved = module.forward, list[bool]()
    monkeypatch.setattr(module, "forward", lambda *inputs: saved.append(inputs[1]) or original(*inputs))
    late_interaction(*problem, backend=backend)
    with torch.no_grad():
        late_interaction(problem.image_tokens.requires_grad_(), *problem[1:], backend=backend)
    score(*problem, backend=backend)
    late_interaction(*problem, backend=backend)
    assert saved == [False, False, False, True]
    assert backend == "reference" or original(problem.tokens(), False)[1] == ()


def test_recomputed_maps_are_not_kept_and_change_nothing() -> None:
    problem = random_problem(8, 9, [4, 7, 2], 32)
    results = []
    for recompute in (False, True):
        kept: list[int] = []
        tokens = [tensor.clone().requires_grad_() for tensor in problem[:2]]
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            result = distributed_late_interaction(*tokens, problem.text_lengths, backend="tiled", recompute=recompute)
        (result.i2t.square().sum() + result.t2i.sum()).backward()
        results.append([tensor.grad for tensor in tokens])
        assert (sum(kept) == sum(tensor.numel() for tensor in (*tokens, problem.text_lengths))) == recompute
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def test_blocks_give_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("late_interaction.scoring.BLOCK_IMAGES", 4)
    monkeypatch.setattr("late_interaction.scoring._BLOCK_TEXTS", 5)
    problem = random_problem(11, 7, random_lengths(13, 1, 20), 16)
    problem.image_tokens.requires_grad_()
    done: list[int] = []
    mask = torch.arange(7) < torch.arange(1, 12)[:, None] % 7 + 1
    result = score(*problem, image_mask=mask, progress=done.append)
    expected = late_interaction(*problem, image_mask=mask, backend="reference")
    assert not result.i2t.requires_grad
    torch.testing.assert_close(result.i2t, expected.i2t.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.t2i, expected.t2i.detach(), rtol=1e-5, atol=1e-6)
    assert sum(done) == 11 * 13 and len(done) == 3 * 3
