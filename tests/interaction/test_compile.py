"""torch.compile(fullgraph=True): one graph, equal to eager, for batches of any lengths."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from late_interaction import (
    LateInteractionLoss,
    Similarity,
    SmoothMaximum,
    contrastive_loss,
    distributed_late_interaction,
    late_interaction,
)
from tests.interaction.problems import Problem, random_problem

# Another number of tokens each time, with the same number of texts; the last needs 16-bit maps.
LENGTHS = [[3, 5, 2, 7], [4, 4, 9, 1], [1, 1, 2, 3], [2, 300, 9, 3]]
SCALE = torch.tensor(5.0)


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def loss_and_gradients(loss: Callable[..., Tensor], problem: Problem, frozen: int | None = None) -> list[Tensor | None]:
    tokens = [tensor.clone().requires_grad_(side != frozen) for side, tensor in enumerate(problem[:2])]
    value = loss(*tokens, problem.text_lengths)
    value.backward()
    return [value.detach(), *(tensor.grad for tensor in tokens)]


@pytest.mark.parametrize("backend", ["auto", "tiled"])
def test_a_compiled_loss_is_the_eager_one_whatever_the_lengths(backend: str) -> None:
    from torch._dynamo.testing import CompileCounterWithBackend

    def loss(image: Tensor, text: Tensor, lengths: Tensor) -> Tensor:
        similarity = late_interaction(2 * image, 3 * text, lengths, backend=backend)
        return contrastive_loss(similarity, SCALE).loss

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    problems = [random_problem(4, 6, lengths, 16, seed=seed) for seed, lengths in enumerate(LENGTHS)]
    for problem in problems:
        result, expected = loss_and_gradients(compiled, problem), loss_and_gradients(loss, problem)
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
    assert counter.frame_count == 2  # the second serves any number of tokens


def test_what_is_frozen_recomputed_or_masked_is_so_in_a_graph() -> None:
    problem = random_problem(4, 6, [3, 5, 2, 7], 16)
    mask = torch.arange(6) < torch.tensor([[6], [3], [1], [5]])

    def total(similarity: Similarity) -> Tensor:
        return similarity.i2t.square().sum() + similarity.t2i.sum()

    def recomputed(*tokens: Tensor) -> Tensor:
        return total(distributed_late_interaction(*tokens, recompute=True))

    def rounded(*tokens: Tensor) -> Tensor:
        return total(distributed_late_interaction(*tokens, transport_dtype=torch.bfloat16))

    def masked(*tokens: Tensor) -> Tensor:
        return total(late_interaction(*tokens, image_mask=mask))

    for loss, frozen in ((recomputed, None), (rounded, 0), (rounded, 1), (masked, None)):
        torch.compiler.reset()
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        result = loss_and_gradients(compiled, problem, frozen)
        torch.testing.assert_close(result, loss_and_gradients(loss, problem, frozen), rtol=0, atol=0)


def test_the_module_is_compiled_whole() -> None:
    problem = random_problem(4, 6, [3, 5, 2, 7], 16)
    ids = torch.tensor([1, 2, 1, 3])
    eager, module = LateInteractionLoss(), LateInteractionLoss()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    result, expected = compiled(*problem, ids), eager(*problem, ids)
    result.loss.backward()
    expected.loss.backward()
    torch.testing.assert_close(tuple(result), tuple(expected))
    torch.testing.assert_close(module.log_scale.grad, eager.log_scale.grad)


def test_it_is_exported_and_not_traced() -> None:
    class Scores(torch.nn.Module):
        def forward(self, image: Tensor, text: Tensor, lengths: Tensor) -> Tensor:
            return late_interaction(image, text, lengths, maximum=SmoothMaximum(0.1)).t2i

    image, text, lengths = torch.randn(3, 4, 8), torch.randn(2, 5, 8), torch.tensor([5, 2])
    exported = torch.export.export(Scores(), (image, text, lengths)).module()
    torch.testing.assert_close(exported(image, text, lengths), Scores()(image, text, lengths), rtol=0, atol=0)
    with pytest.raises(NotImplementedError, match="cannot be traced"):
        torch.jit.trace(Scores(), (image, text, lengths))


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_the_operators_keep_to_pytorchs_rules(temperature: float) -> None:
    image, text, lengths = random_problem(3, 4, [2, 5], 8)
    for tokens in ((image, text), (image.requires_grad_(), text.requires_grad_())):
        given = *tokens, lengths, None, None, "auto", temperature, torch.float32, tokens[0].requires_grad
        torch.library.opcheck(torch.ops.late_interaction.forward.default, given)
    with torch.no_grad():
        i2t, t2i, *kept = torch.ops.late_interaction.forward(*given)
    given = i2t, t2i, image.detach(), text.detach(), *given[2:5], *kept, *given[5:], True, False
    torch.library.opcheck(torch.ops.late_interaction.backward.default, given)
