"""Values and gradients of every backend that runs here, against the reference in float64 on the CPU."""

import itertools
from typing import Any

import torch

from bench.gpu.finding import FAIL, PASS, Finding, Place
from late_interaction import late_interaction
from tests.interaction.problems import Problem, random_lengths, random_problem, upstream
from tests.interaction.triton_interpreted import SHAPES

# Bounds of values and of gradients, relative to the largest. Sums over 256 features in another order are within 1e-5 in
# float32; gradients are returned in the tokens' dtype, and Triton rounds the winners' weights to 16 bits before.
TOLERANCES = {torch.float32: (1e-5, 1e-5), torch.float16: (1e-5, 2e-3), torch.bfloat16: (1e-5, 1.6e-2)}
REALISTIC = [
    (16, 49, random_lengths(70, 4, 40), 256),
    (6, 197, random_lengths(70, 4, 77), 256),
    (4, 256, random_lengths(40, 4, 77), 512),
    (2, 9, [300, 5, 80], 64),
]


def check(place: Place) -> Finding:
    rows, wrong = [], []
    backends = ["reference", "tiled"]
    if place.device.type != "cuda":
        backends.append("native")
    elif torch.cuda.get_device_capability(place.device)[0] >= 8:
        backends.append("triton")
    shapes = SHAPES[:3] if place.tiny else [*SHAPES, *REALISTIC]
    for shape, ragged in itertools.product(shapes, (False, True)):
        problem = random_problem(*shape)
        tokens = torch.tensor(random_lengths(shape[0], 1, shape[1]))
        mask = torch.arange(shape[1]) < tokens[:, None] if ragged else None
        for dtype, tolerances in TOLERANCES.items():
            rounded = Problem(problem.image_tokens.to(dtype), problem.text_tokens.to(dtype), problem.text_lengths)
            expected = solve(rounded, "reference", torch.device("cpu"), torch.float64, mask)
            for backend in backends:
                row = compare(rounded, expected, backend, place.device, tolerances, mask)
                images = f"{shape[0]} x {'1 to ' if ragged else ''}{shape[1]}"
                row = {"images x tokens": images, "texts": len(shape[2]), "d": shape[3],
                       "dtype": str(dtype).removeprefix("torch."), "backend": backend, **row}  # fmt: skip
                rows.append(row)
                if row["verdict"] == FAIL:
                    wrong.append(f"{backend} in {row['dtype']}")
    if wrong:
        return Finding(FAIL, f"{len(wrong)} of {len(rows)} differ: {', '.join(dict.fromkeys(wrong))}", rows)
    return Finding(PASS, f"{len(rows)} problems agree with float64, and twice give the same bits", rows)


def solve(
    problem: Problem,
    backend: str,
    device: torch.device,
    dtype: torch.dtype | None = None,
    mask: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Return both matrices and both gradients."""
    image, text = (t.to(device, dtype or t.dtype).detach().requires_grad_() for t in problem[:2])
    mask = None if mask is None else mask.to(device)
    i2t, t2i = late_interaction(image, text, problem.text_lengths, image_mask=mask, backend=backend)
    weights = [weight.to(i2t) for weight in upstream(i2t.shape)]
    return [i2t.detach(), t2i.detach(), *torch.autograd.grad((i2t, t2i), (image, text), weights)]


def compare(
    problem: Problem,
    expected: list[torch.Tensor],
    backend: str,
    device: torch.device,
    tolerances: tuple[float, float],
    mask: torch.Tensor | None,
) -> dict[str, Any]:
    try:
        found, again = (solve(problem, backend, device, mask=mask) for _ in range(2))
    except ValueError as error:
        if "cannot run here" in str(error):
            return {"verdict": "skipped", "why": str(error)}
        raise
    errors = [float((a.double().cpu() - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]
    values, gradients = max(errors[:2]), max(errors[2:])
    # The reference adds gradients atomically on a GPU
    same = backend == "reference" or all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    right = values <= tolerances[0] and gradients <= tolerances[1] and same
    why = "" if same else "two runs differ"
    return {"values": values, "gradients": gradients, "verdict": PASS if right else FAIL, "why": why}
