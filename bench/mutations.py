"""Faults put into the late-interaction engine one by one; some test must notice each.

    python -m bench.mutations [only=WORD]

Each is applied to a copy of the sources, and the tests named with it run there; first they must pass without it.
Prints a line per fault and exits with 1 if one went unnoticed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENGINE, TESTS = "late-interaction/late_interaction", "tests/interaction"
_FAILED = 1  # pytest's exit code for "some tests failed"


@dataclass(frozen=True)
class Mutation:
    """A fault: ``old`` becomes ``new`` wherever it is in ``file``, and one of ``tests`` must fail."""

    fault: str
    file: str
    old: str
    new: str
    tests: str  # arguments of pytest, the file first; after "::" the expression for -k
    interpreted: bool = False  # with Triton's interpreter


MUTATIONS = [
    Mutation(
        "native: of equal maxima any wins",
        f"{ENGINE}/csrc/forward.h",
        "(other > best) | ((other == best) & (there < where))",
        "(other > best)",
        f"{TESTS}/test_native.py::ties",
    ),
    Mutation(
        "native: a NaN does not show",
        f"{ENGINE}/csrc/forward.h",
        "const float nan = i2t * 0.0f + t2i * 0.0f;",
        "const float nan = 0;",
        f"{TESTS}/test_native.py::number_that_is_none",
    ),
    Mutation(
        "native: backward without the winners of the source",
        f"{ENGINE}/csrc/backward.h",
        "scatter_all<V>(source + (from - from0) * WIDTH, side.row(false, s + 1) - from, terms);",
        "(void)from0; (void)source; (void)from;",
        f"{TESTS}/test_native.py::test_float32 and paper",
    ),
    Mutation(
        "native: backward without the winners of the destination",
        f"{ENGINE}/csrc/backward.h",
        "gather_all<V>(destination + (to - to0) * WIDTH, side.row(true, d + 1) - to, terms);",
        "(void)to;",
        f"{TESTS}/test_native.py::test_float32 and paper",
    ),
    Mutation(
        "native: small weights count as none",
        f"{ENGINE}/csrc/backward.h",
        "terms.count += terms.weight[terms.count] != 0;",
        "terms.count += !(__builtin_fabsf(terms.weight[terms.count]) < 1e-20f);",
        f"{TESTS}/test_native.py::gradients_of_nothing",
    ),
    Mutation(
        "native: bfloat16 sums rounded to bfloat16",
        f"{ENGINE}/native.py",
        "    return grad_image, grad_text\n",
        "    return grad_image.to(image.dtype).float(), grad_text.to(text.dtype).float()\n",
        f"{TESTS}/test_native.py::summed_in_float32",
    ),
    Mutation(
        "tiled: backward without the winning image tokens",
        f"{ENGINE}/tiled.py",
        "flatten(), t2i_weight.flatten()]",
        "flatten(), 0 * t2i_weight.flatten()]",
        f"{TESTS}/test_backends.py::test_float32 and tiled and paper",
    ),
    Mutation(
        "tiled: tiles on a GPU are bounded as on a CPU",
        f"{ENGINE}/lengths.py",
        "(_TILE_ACCELERATOR, 1 << 13)",
        "(_TILE_ACCELERATOR, 512)",
        f"{TESTS}/test_tiled.py::tiles_cover",
    ),
    Mutation(
        "Triton: backward without the winning image tokens",
        f"{ENGINE}/triton_kernels.py",
        "both = of_rows + of_entries",
        "both = of_rows + 0.0 * of_entries",
        f"{TESTS}/triton_interpreted.py::test_float32",
        interpreted=True,
    ),
    Mutation(
        "Triton: of equal maxima the last wins",
        f"{ENGINE}/triton_kernels.py",
        "tl.where(tile > won, 0.0, 1.0)",
        "tl.where(tile >= won, 0.0, 1.0)",
        f"{TESTS}/triton_interpreted.py::ties",
        interpreted=True,
    ),
    Mutation(
        "Triton: one scale for the weights of all items",
        f"{ENGINE}/packing.py",
        "weights[1].abs()).amax(dim=dim, keepdim=True)",
        "weights[1].abs()).amax().expand_as(weights[0].amax(dim=dim, keepdim=True))",
        f"{TESTS}/triton_interpreted.py::weight",
        interpreted=True,
    ),
    Mutation(
        "Triton: launched on the current device",
        f"{ENGINE}/triton_launch.py",
        "with torch.cuda.device_of(images):",
        "if True:",
        f"{TESTS}/triton_interpreted.py::device_of_the_tokens",
        interpreted=True,
    ),
    Mutation(
        "the similarity is rounded under autocast",
        f"{ENGINE}/backends.py",
        "with torch.autocast(tokens.image.device.type, enabled=False):",
        "if True:",
        f"{TESTS}/test_backends.py::autocast",
    ),
    Mutation(
        "maps are saved although they are to be recomputed",
        f"{ENGINE}/operator.py",
        "needed and not recompute)[:2])",
        "needed)[:2])",
        f"{TESTS}/test_saved_work.py::recomputed",
    ),
    Mutation(
        "maps are made that nobody asks for",
        f"{ENGINE}/operator.py",
        "tokens, save)",
        "tokens)",
        f"{TESTS}/test_saved_work.py::no_maps",
    ),
    Mutation(
        "factors of float32 are rounded to TF32 where the user has said so",
        f"{ENGINE}/packing.py",
        "    if before == full:",
        "    if True:",
        f"{TESTS}/test_backends.py::whatever_the_setting",
    ),
    Mutation(
        "a frozen tower pays for its gradient",
        f"{ENGINE}/operator.py",
        "residuals, (image_needed, text_needed))",
        "residuals, (True, True))",
        f"{TESTS}/test_saved_work.py::frozen",
    ),
    Mutation(
        "gradients are rounded to 16 bits with the tokens",
        f"{ENGINE}/operator.py",
        "return gradient.to(tokens.dtype)",
        "return gradient.half().to(tokens.dtype)",
        f"{TESTS}/test_distributed.py::not_rounded",
    ),
    Mutation(
        "a second derivative is silently zero",
        f"{ENGINE}/differentiation.py",
        "if not torch.is_grad_enabled():",
        "if True:",
        f"{TESTS}/test_refusals.py::second_derivative",
    ),
    Mutation(
        "torch.func is let through",
        f"{ENGINE}/differentiation.py",
        "if active is not None and active():",
        "if False:",
        f"{TESTS}/test_refusals.py::functional_transforms",
    ),
    Mutation(
        "the repeated tokens of a shorter image count",
        f"{ENGINE}/tiled.py",
        "torch.where(block.inside[..., None], of_images, 0)",
        "of_images",
        f"{TESTS}/test_masking.py::masked_image and 0.0",
    ),
    Mutation(
        "masked image tokens of a pair count as zeros",
        f"{ENGINE}/pairs.py",
        "torch.where(mask[:, :, None], similarity, -torch.inf)",
        "similarity",
        f"{TESTS}/test_pairs.py::among_all",
    ),
    Mutation(
        "dropout differs between both encodings of a micro-batch",
        f"{ENGINE}/grad_cache.py",
        "        _restore(state)\n",
        "",
        f"{TESTS}/test_grad_cache.py::big_batch",
    ),
    Mutation(
        "ranks do not compare their calls",
        f"{ENGINE}/agreement.py",
        "    _compare(calls)\n",
        "",
        f"{TESTS}/test_distributed.py::2-gather and mistakes",
    ),
    Mutation(
        "the backward of tiled waits for the device",
        f"{ENGINE}/tiled.py",
        "            output_size=order.offsets[-1],\n",
        "",
        f"{TESTS}/test_waits.py::lengths",
    ),
    Mutation(
        "the backward of tiled on a GPU waits for the device",
        f"{ENGINE}/packing.py",
        ", output_size=rows",
        "",
        f"{TESTS}/test_waits.py::lengths",
    ),
    Mutation(
        "lengths go to the device",
        "filip/train/engine.py",
        'value if name.endswith("lengths") else value.to(',
        "value.to(",
        "tests/train/test_losses.py::wait",
    ),
]


def main(only: str = "") -> int:
    chosen = [mutation for mutation in MUTATIONS if only.lower() in mutation.fault.lower()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        original = copy_sources(folder / "original")
        for tests, interpreted in dict.fromkeys((mutation.tests, mutation.interpreted) for mutation in chosen):
            if run(original, tests, interpreted) != 0:
                sys.exit(f"{tests} fails without any fault; mend that first")
        unnoticed = [mutation for mutation in chosen if not noticed(mutation, folder)]
    print(f"{len(chosen) - len(unnoticed)} of {len(chosen)} faults noticed")
    return 1 if unnoticed else 0


def noticed(mutation: Mutation, folder: Path) -> bool:
    sources = copy_sources(folder / "mutated")
    file = sources / mutation.file
    text = file.read_text()
    if mutation.old not in text:
        sys.exit(f"{mutation.file} no longer holds {mutation.old!r}: bring bench/mutations.py up to date")
    file.write_text(text.replace(mutation.old, mutation.new))
    failed = run(sources, mutation.tests, mutation.interpreted) == _FAILED
    shutil.rmtree(sources)
    print(f"{'noticed  ' if failed else 'UNNOTICED'} {mutation.fault}", flush=True)
    return failed


def copy_sources(to: Path) -> Path:
    for name in ("filip", "late-interaction", "tests", "bench"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", to)
    return to


def run(sources: Path, tests: str, interpreted: bool) -> int:
    """Return the exit code of pytest."""
    file, expression = tests.split("::")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(sources), str(sources / "late-interaction")]),
        "TRITON_INTERPRET": str(int(interpreted)),
        "LATE_INTERACTION_CACHE": str(sources.parent / "native"),
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", file, "-k", expression]
    return subprocess.run(command, cwd=sources, env=environment, capture_output=True).returncode


if __name__ == "__main__":
    words = [word.removeprefix("only=") for word in sys.argv[1:] if word.startswith("only=")]
    sys.exit(main(*words))
