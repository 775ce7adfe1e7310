"""The portable kernels as 64-bit ARM with NEON, emulated (Debian: g++-aarch64-linux-gnu and qemu-user)."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from late_interaction import SmoothMaximum, late_interaction
from late_interaction.native_build import SOURCES
from tests.interaction.problems import random_problem, upstream

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = ["-std=c++20", "-O1", "-static", "-ffp-contract=fast", "-fno-math-errno"]
pytestmark = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(EMULATOR)), reason=f"needs {COMPILER} and {EMULATOR}"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("neon")
    sources = [Path(__file__).parent / "neon_main.cpp", SOURCES / "library.cpp", SOURCES / "isa_portable.cpp"]
    subprocess.run([COMPILER, *FLAGS, *map(str, sources), "-o", str(folder / "program")], check=True)
    return folder / "program"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_pass_is_that_of_float64(program: Path, dtype: torch.dtype, tmp_path: Path) -> None:
    lengths, of_images = [3, 1, 20, 7], torch.tensor([9, 2, 17])
    _, text, text_lengths = random_problem(1, 1, lengths, 37)
    image = random_problem(1, 28, [1], 37, seed=1).image_tokens[0].to(dtype)
    image[7], image[20], text[23] = image[1], image[12], text[5]  # ties, which the first wins
    text, weights = text.to(dtype), upstream(torch.Size([3, 4]))
    parts = [torch.tensor([3, 4, 37, dtype == torch.bfloat16])]
    parts += [torch.cat([torch.zeros(1, dtype=torch.int64), n.cumsum(0)]) for n in (of_images, text_lengths)]
    parts += [image, text, *weights]
    (tmp_path / "in").write_bytes(b"".join(part.contiguous().view(torch.uint8).numpy().tobytes() for part in parts))
    command = [EMULATOR, str(program), str(tmp_path / "in"), str(tmp_path / "out")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "neon\n"
    result = torch.frombuffer(bytearray((tmp_path / "out").read_bytes()), dtype=torch.float32)
    expected: list[Tensor] = []
    for maximum in (None, SmoothMaximum(0.05), SmoothMaximum(0.05)):
        sides = [side.double().requires_grad_() for side in (image, text)]
        both = late_interaction(*sides, text_lengths, image_lengths=of_images, maximum=maximum)
        gradients = torch.autograd.grad(tuple(both), sides, [weight.double() for weight in weights])
        expected += [*both, *gradients]
    for part, target in zip(result.split([one.numel() for one in expected]), expected, strict=True):
        difference = (part.double() - target.detach().flatten()).abs().max()
        assert float(difference / target.detach().abs().max()) <= 4e-6
