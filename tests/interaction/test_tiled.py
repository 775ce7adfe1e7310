"""The tiled backend: its memory, its tiles, and what it does on a GPU, watched on a CPU."""

import pytest
import torch

from late_interaction import late_interaction, tiled
from late_interaction.lengths import tiles
from late_interaction.packing import Tokens
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
def test_gradients_by_products_are_those_by_sums(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """``tiled`` uses products on a GPU; here a CPU does, with weights over nine decades, each item on its own scale."""
    tokens = random_problem(5, 9, [3, 5, 2, 5, 3], 16).tokens(dtype)
    maps = tiled.forward(tokens)[1]
    weight = torch.logspace(0, -9, 5)[:, None] * (1 + torch.rand(5, 5)) * 1e-3
    for gradient in (weight, weight.T):
        expected = tiled.backward(tokens, (gradient, gradient), maps)
        with monkeypatch.context() as patch:
            patch.setattr(tiled, "_by_sums", tiled._by_products)
            result = tiled.backward(tokens, (gradient, gradient), maps)
            frozen = tiled.backward(tokens, (gradient, gradient), maps, (False, True))
        pairs = [*zip(result[0], expected[0], strict=True)]
        pairs += zip(*(of_texts.split(tokens.lengths) for _, of_texts in (result, expected)), strict=True)
        for a, b in pairs:
            assert float((a - b).norm() / b.norm()) < 4 * torch.finfo(dtype).eps
        assert frozen[0].numel() == 0 and torch.equal(frozen[1], result[1])


def test_the_slice_of_a_gpu_takes_few_kernels_and_little_scratch() -> None:
    """They are 320 images with 40,960 captions of 4 to 77 tokens, only shapes ("meta" stands for an accelerator)."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counted(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.operations, self.largest = 0, 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if not function.is_view:
                self.operations += 1
                for tensor in result if isinstance(result, tuple | list) else (result,):
                    if isinstance(tensor, torch.Tensor) and tensor.dim() > 2:
                        self.largest = max(self.largest, tensor.numel() * tensor.element_size())
            return result

    normal = torch.distributions.Normal(18.0, 6.0)
    lengths = normal.icdf((torch.arange(40_960) + 0.5) / 40_960).round().long().clamp(4, 77).tolist()
    image = torch.empty(320, 49, 256, dtype=torch.float16, device="meta")
    text = torch.empty(sum(lengths), 256, dtype=torch.float16, device="meta")
    counts = []
    with Counted() as counted:
        actual, maps = tiled.forward(Tokens(image, text, lengths))
        counts.append(counted.operations)
        counted.largest = 0
        tiled.backward(Tokens(image, text, lengths), actual, maps)
        counts.append(counted.operations - counts[0])
    assert counts[0] < 2500 and counts[1] < 4500, counts  # 13,413 a forward before tiles grew with the device
    assert counted.largest <= 1 << 28  # bytes, where the lists of all winners took 1.6 GB


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


@pytest.mark.parametrize("waste", [0.0, 0.25])
def test_tiles_of_images_that_differ_pad_them_little(waste: float) -> None:
    images, texts = sorted(random_lengths(50, 20, 60, seed=1)), sorted(random_lengths(30, 1, 9))
    seen = torch.zeros(50, 30, dtype=torch.int64)
    for block, columns in tiles(images, texts, torch.device("cpu"), waste=waste):
        real = images[block]
        assert len(real) * real[-1] <= (1 + waste) * sum(real)
        seen[block, columns] += 1
    assert bool((seen == 1).all())
