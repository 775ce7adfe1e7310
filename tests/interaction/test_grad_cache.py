"""Gradient caching gives the gradients of the big batch, dropout included."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from late_interaction import ContrastiveOutput, Similarity, contrastive_loss, late_interaction
from late_interaction.grad_cache import cached_backward

Batch = tuple[Tensor, Tensor, Tensor]


class Towers(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(6, 16), nn.Linear(5, 16)
        self.dropout = nn.Dropout(dropout)
        self.log_scale = nn.Parameter(torch.tensor([2.0]))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        image, text, lengths = batch
        encoded = (
            F.normalize(self.dropout(layer(x)), dim=-1)
            for layer, x in zip((self.image, self.text), (image, text), strict=True)
        )
        return *encoded, lengths, self.log_scale.exp()


def loss(image: Tensor, text: Tensor, lengths: Tensor, scale: Tensor) -> ContrastiveOutput:
    return contrastive_loss(late_interaction(image, text, lengths, backend="tiled"), scale.mean())


def micro_batches(sizes: list[int]) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for size in sizes:
        lengths = torch.randint(1, 6, (size,), generator=generator)
        text = torch.randn(int(lengths.sum()), 5, generator=generator)
        batches.append((torch.randn(size, 7, 6, generator=generator), text, lengths))
    return batches


def gradients(model: nn.Module) -> list[Tensor]:
    results = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    assert len(results) == len(list(model.parameters()))
    model.zero_grad()
    return results


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("sizes", [[4, 4, 4], [1, 6, 2], [9]])
def test_exactly_the_big_batch(dropout: float, sizes: list[int]) -> None:
    torch.manual_seed(1)
    model, batches = Towers(dropout).double(), micro_batches(sizes)
    batches = [(image.double(), text.double(), lengths) for image, text, lengths in batches]
    torch.manual_seed(2)
    whole = loss(*(torch.cat(tensors) for tensors in zip(*(model(b) for b in batches), strict=True)))
    after = torch.get_rng_state()
    whole.loss.backward()
    expected = gradients(model)
    torch.manual_seed(2)
    output = cached_backward(batches, model, loss, torch.Tensor.backward)
    assert torch.equal(torch.get_rng_state(), after)  # what follows draws as it would have
    torch.testing.assert_close(output.loss, whole.loss.detach())
    assert not output.loss.requires_grad
    for result, target in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(result, target, rtol=1e-9, atol=1e-12)


def test_loss_scale_keeps_small_gradients_of_half_precision() -> None:
    """Features are in float16, and their gradient, about 1e-9, is below float16's smallest number."""
    features = torch.ones(2, 3, dtype=torch.float16)
    weight = torch.ones(1, requires_grad=True)

    def encode(batch: Tensor) -> tuple[Tensor, ...]:
        return (batch * weight.half(),)

    def tiny(encoded: Tensor) -> ContrastiveOutput:
        value = (encoded * 2**-15).sum().float() * 2**-15
        return ContrastiveOutput(value, value, value, value, value)

    cached_backward([features], encode, tiny, torch.Tensor.backward)
    assert weight.grad is not None and float(weight.grad) == 0
    scaled: list[Tensor] = []
    cached_backward([features], encode, tiny, scaled.append, loss_scale=2.0**15)
    # The scalar is <features, gradient>: 6 entries of 1 * 2^-30, held in float32.
    assert float(scaled[0].detach()) == pytest.approx(6 * 2**-30, rel=1e-6)


def test_inside_one_autocast_the_weights_get_their_gradient() -> None:
    """PyTorch keeps the weights that it cast in the pass without a graph; some versions then use them again."""
    torch.manual_seed(1)
    model, batches = Towers(0.0), micro_batches([4, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cached_backward(batches, model, loss, torch.Tensor.backward)
    assert all(bool(gradient.any()) for gradient in gradients(model))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="at least one micro-batch"):
        cached_backward([], lambda b: (b,), loss, torch.Tensor.backward)
    calls = iter([torch.ones(2, 2), torch.ones(3, 2)])

    def restless(batch: int) -> tuple[Tensor, ...]:
        return (next(calls),)

    def total(x: Tensor) -> ContrastiveOutput:
        return contrastive_loss(Similarity(x, x.T), torch.tensor(1.0))

    with pytest.raises(ValueError, match=r"\[\[3, 2\]\] the second time"):
        cached_backward([0], restless, total, torch.Tensor.backward)
