"""The tiled backend: its memory, its tiles, and what it does on a GPU, watched on a CPU."""

import pytest
import torch

from late_interaction import late_interaction, tiled
from late_interaction.lengths import tiles
from tests.interaction.problems import random_lengths, random_problem


def test_tiled_memory_stays_far_below_the_similarity() -> None:
    """Autograd keeps these bytes in addition to the tokens: maps (a byte a winner) and lengths; no [b, t, n1, n2]."""
    problem = random_problem(32, 49, [18] * 32, 64)
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    image, text = problem.image_tokens.requires_grad_(), problem.text_tokens.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        late_interaction(image, text, problem.text_lengths, backend="tiled")
    tokens = 4 * (image.numel() + text.numel())
    assert sum(kept) == tokens + 32 * 32 * (49 + 18) + 8 * 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_the_tokens_dtype_lose_nothing_small(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, with weights over nine decades, each item on its own scale."""
    tokens = random_problem(5, 9, [3, 5, 2, 5, 3], 16).tokens(dtype)
    maps = tiled.forward(tokens)[1]
    weight = torch.logspace(0, -9, 5)[:, None] * (1 + torch.rand(5, 5)) * 1e-3
    for gradient in (weight, weight.T):
        expected = tiled.backward(tokens, (gradient, gradient), maps)
        with monkeypatch.context() as patch:
            patch.setattr(tiled, "dtype_of_weights", lambda tokens: tokens.dtype)
            result = tiled.backward(tokens, (gradient, gradient), maps)
            frozen = tiled.backward(tokens, (gradient, gradient), maps, (False, True))
        pairs = [*zip(result[0], expected[0], strict=True)]
        pairs += zip(*(of_texts.split(tokens.lengths) for _, of_texts in (result, expected)), strict=True)
        for a, b in pairs:
            assert float((a - b).norm() / b.norm()) < 4 * torch.finfo(dtype).eps
        assert frozen[0].numel() == 0 and torch.equal(frozen[1], result[1])


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tiles_cover_every_pair_once(device: str) -> None:
    """On a CPU they fit its cache, elsewhere they are few; "meta" stands for an accelerator."""
    lengths = sorted(random_lengths(300, 1, 40))
    seen = torch.zeros(20, 300, dtype=torch.int64)
    results = list(tiles([49] * 20, lengths, torch.device(device)))
    for images, texts in results:
        assert lengths[texts.start] == lengths[texts.stop - 1]
        seen[images, texts] += 1
    assert bool((seen == 1).all())
    if device == "meta":
        assert len(results) == len(set(lengths))
