"""Which backend is chosen, and what is said where none can do what was asked."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from late_interaction import LateInteractionLoss, distributed_late_interaction, late_interaction
from late_interaction.backends import SmoothMaximum, choose_backend
from tests.interaction.available import BACKENDS
from tests.interaction.problems import random_problem
from tests.support.training import compose


def test_backend_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    from late_interaction import reference, tiled

    monkeypatch.delenv("LATE_INTERACTION_BACKEND", raising=False)
    tokens = torch.zeros(2, 3, 16)
    assert choose_backend(tokens, 5, "reference") is reference
    assert choose_backend(tokens.double(), 5, "auto") is tiled
    monkeypatch.setenv("LATE_INTERACTION_BACKEND", "reference")
    assert choose_backend(tokens, 5, "auto") is reference
    assert choose_backend(tokens, 5, "tiled") is tiled  # an explicit choice wins over the environment
    monkeypatch.setenv("LATE_INTERACTION_BACKEND", "natve")
    with pytest.raises(ValueError, match="LATE_INTERACTION_BACKEND='natve'"):
        choose_backend(tokens, 5, "auto")


def test_one_notice_without_a_fast_backend(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from late_interaction import backends, tiled

    monkeypatch.delenv("LATE_INTERACTION_BACKEND", raising=False)
    monkeypatch.setattr(backends, "_notices", set())
    monkeypatch.setattr("late_interaction.native.unavailable_reason", lambda tokens, longest: "no compiler here")
    for _ in range(2):
        assert choose_backend(torch.zeros(2, 3, 16), 5) is tiled
    assert choose_backend(torch.zeros(2, 3, 16).half(), 5) is tiled
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["late_interaction: no compiler here; using the tiled PyTorch backend, which is exact but slower"]
    with pytest.raises(ValueError, match="'native' cannot run here: no compiler here; use 'tiled' or 'auto'"):
        choose_backend(torch.zeros(2, 3, 16), 5, "native")


def test_a_small_scoring_needs_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training has the same backend in all of its steps, however small one is."""
    from late_interaction import backends, reference, tiled

    monkeypatch.delenv("LATE_INTERACTION_BACKEND", raising=False)
    monkeypatch.setitem(
        backends.BACKENDS, "native", replace(backends.BACKENDS["native"], module="late_interaction.reference")
    )
    tokens = torch.zeros(2, 3, 16)
    assert choose_backend(tokens, 5, products=1000) is tiled
    assert choose_backend(tokens, 5, products=10**9) is choose_backend(tokens, 5) is reference


def test_a_backend_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    from late_interaction import backends, reference

    entry = backends.BackendEntry("late_interaction.reference", auto_on="meta")
    monkeypatch.setitem(backends.BACKENDS, "mine", entry)
    assert choose_backend(torch.zeros(2, 3, 16), 5, "mine") is reference
    assert choose_backend(torch.zeros(2, 3, 16, device="meta"), 5) is reference
    assert compose("model=tiny", "backend=mine").backend == "mine"
    with pytest.raises(ValueError, match="choose one of auto, reference, tiled, native, triton, mine"):
        choose_backend(torch.zeros(2, 3, 16), 5, "yours")
    monkeypatch.setitem(backends.BACKENDS, "absent", backends.BackendEntry("no_such_module"))
    with pytest.raises(ValueError, match="'absent' cannot run here: the absent backend cannot be imported"):
        choose_backend(torch.zeros(2, 3, 16), 5, "absent")


@pytest.mark.parametrize(
    ("image", "text", "lengths", "message"),
    [
        ((0, 4, 8), (6, 8), [2, 4], "empty batch"),
        ((2, 4, 8), (0, 8), [], "empty batch"),
        ((2, 0, 8), (6, 8), [2, 4], "no tokens"),
        ((2, 4, 8), (6, 8), [2, 0, 4], "at least one token"),
        ((2, 4, 8), (6, 8), [2, 3], "sum to 5"),
        ((2, 4, 8), (6, 16), [2, 4], "same embedding space"),
        ((2, 8), (6, 8), [2, 4], "image_tokens \\[images, n1, d\\]"),
    ],
)
def test_mistakes_are_named(image: tuple[int, ...], text: tuple[int, ...], lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        late_interaction(torch.zeros(image), torch.zeros(text), torch.tensor(lengths, dtype=torch.int64))


@pytest.mark.parametrize(
    ("texts", "lengths", "image_mask", "message"),
    [
        (2, [4, 4], None, "text_lengths must be a tensor of integers, got list"),
        (2, None, None, "text_lengths must be a tensor of integers, got NoneType"),
        (2, torch.ones(2, 4, dtype=torch.int64), None, "attention_mask.bool()"),
        (2, torch.ones(2), None, "got \\[2, 4, 8\\] and torch.float32"),
        (2, torch.tensor([4, 2]), torch.ones(2, 5), "boolean \\[images, n1\\] = \\[2, 5\\], got torch.float32"),
        (2, torch.tensor([4, 2]), torch.ones(2, 3).bool(), "got torch.bool \\[2, 3\\]"),
        (3, torch.tensor([4, 2, 1]), None, "each image needs one text in its place"),
    ],
)
def test_lengths_and_masks_that_do_not_fit_are_named(
    texts: int, lengths: Any, image_mask: torch.Tensor | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LateInteractionLoss()(torch.randn(2, 5, 8), torch.randn(texts, 4, 8), lengths, image_mask=image_mask)


@pytest.mark.parametrize("text_dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_derivative_is_refused_in_words(backend: str, text_dtype: torch.dtype) -> None:
    """The sides may differ in their dtype, so that one of them is rounded."""
    if backend == "native" and text_dtype == torch.float64:
        pytest.skip("the native kernels do not take float64")
    problem = random_problem(2, 3, [2, 4], 8)
    tokens = problem.image_tokens.requires_grad_(), problem.text_tokens.to(text_dtype).requires_grad_()
    similarity = late_interaction(*tokens, problem.text_lengths, backend=backend)
    (gradient,) = torch.autograd.grad(similarity.i2t.sum(), tokens[0], create_graph=True)
    for side in tokens:  # was None in silence
        with pytest.raises(NotImplementedError, match="no second derivative"):
            torch.autograd.grad(gradient.square().sum(), side, allow_unused=True, retain_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.square().sum().backward()


def test_functional_transforms_are_refused_in_words() -> None:
    image, text, lengths = random_problem(2, 3, [2, 4], 8)
    with pytest.raises(NotImplementedError, match="does not run inside torch"):
        torch.func.grad(lambda x: late_interaction(x, text, lengths).i2t.sum())(image)
    with pytest.raises(NotImplementedError, match="does not run inside torch"):
        torch.func.grad(lambda x: distributed_late_interaction(x, text, lengths).i2t.sum())(image)


def test_forward_mode_and_a_temperature_with_a_gradient_are_refused_in_words() -> None:
    image, text, lengths = torch.randn(2, 3, 8), torch.randn(5, 8), torch.tensor([2, 3])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(image, torch.ones_like(image))
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            late_interaction(dual, text, lengths)
        late_interaction(image, text, lengths)
    with pytest.raises(TypeError, match="temperature is a number"):
        SmoothMaximum(torch.tensor(0.05, requires_grad=True))  # type: ignore[arg-type]
