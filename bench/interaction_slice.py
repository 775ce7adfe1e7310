"""Time one device's slice of the paper's batch: what the loss adds to a training step.

A global batch of 8,192 over 512 devices leaves 16 pairs on each. A device's part of the loss is 16 own images against
8,192 captions, forward and backward, in both directions: the owner of the image scores a pair once for both (see
``distributed_late_interaction``). Its part of the encoders is 16 pairs through ViT-B/32 and the 12-layer text
transformer at 77 tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.interaction_problem import Problem, Step
from filip.models import build_model, load_preset
from late_interaction import late_interaction
from late_interaction.backends import AnyBackend

PAIRS, GLOBAL_PAIRS = 16, 8192


def encoders() -> Step:
    torch.manual_seed(0)
    model = build_model(load_preset("base"))
    pixels = torch.randn(PAIRS, 3, 224, 224)
    ids = torch.randint(1, 49_000, (PAIRS, 77))
    lengths = torch.full((PAIRS,), 77)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        encoded = model(pixels, ids, lengths)
        (encoded.image.square().sum() + encoded.text.tokens.square().sum()).backward()

    return step


def clip_loss() -> Step:
    """Return a step of CLIP's share: 16 rows of either soft-max over 8,192, with gradients for all vectors."""
    vectors = [F.normalize(torch.randn(PAIRS, 512), dim=-1).requires_grad_() for _ in range(2)]
    remote = [F.normalize(torch.randn(GLOBAL_PAIRS, 512), dim=-1).requires_grad_() for _ in range(2)]

    def step() -> None:
        for a, b in zip(vectors, remote, strict=True):
            a.grad = b.grad = None
            _cross_entropy(a @ b.T).backward()

    return step


def filip_loss(problem: Problem, backend: AnyBackend = "auto") -> Step:
    """Return a step of both matrices, their soft-maxes over the captions and the gradients of all tokens."""
    image, text = (tokens.detach().requires_grad_() for tokens in (problem.image, problem.text))

    def step() -> None:
        image.grad = text.grad = None
        similarity = late_interaction(image, text, problem.lengths, backend=backend)
        torch.stack([_cross_entropy(matrix) for matrix in similarity]).sum().backward()

    return step


def _cross_entropy(similarity: Tensor) -> Tensor:
    return F.cross_entropy(similarity / 0.07, torch.arange(len(similarity)))
