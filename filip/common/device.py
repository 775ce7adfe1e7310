"""Hide how accelerators, whichever this PyTorch was built for, and the CPU differ."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from filip.common.errors import UserError

MB = 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def best_device() -> torch.device:
    """Return the accelerator of this machine, or the CPU if there is none."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def own_device(local_rank: int) -> torch.device:
    """Return the device of the process that is number ``local_rank`` on this machine."""
    best, count = best_device(), torch.accelerator.device_count()
    return torch.device(best.type, local_rank % count) if count > 1 else best


def machine() -> str:
    """Describe the accelerators of this machine, or its CPU, in the same words on every machine of that kind."""
    best = best_device()
    if best.type != "cpu":
        return f"{torch.accelerator.device_count()} x {name(best)}"
    return f"{platform.machine()} CPU with {os.cpu_count()} cores"


def cpu() -> dict[str, Any]:
    """Return the CPU's model, family and model number, its vector instructions, and PyTorch's."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
        facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = (facts.get("flags") or facts.get("Features") or "").split()  # of x86, of Arm
    return {
        "model": facts.get("model name") or platform.processor() or platform.machine(),
        "family": ", ".join(f"{key} {facts[key]}" for key in ("cpu family", "model", "stepping") if key in facts),
        "flags": [flag for flag in flags if flag.startswith(("avx", "amx", "fma", "sve", "asimd", "bf16", "i8mm"))],
        "computes_as": torch.backends.cpu.get_cpu_capability(),
    }


def resolve(wanted: str) -> torch.device:
    """Return the device that ``device=`` names ("auto": the best). Raises UserError if this machine lacks it."""
    if wanted == "auto":
        return best_device()
    counts = {best_device().type: max(1, torch.accelerator.device_count()), "cpu": 1}
    kind, colon, number = wanted.partition(":")
    if kind in counts and (not colon or (number.isdecimal() and int(number) < counts[kind])):
        return torch.device(wanted)
    here = [f"{kind}:{n}" if count > 1 else kind for kind, count in counts.items() for n in range(count)]
    built = " (this PyTorch was built without CUDA)" if kind == "cuda" and torch.version.cuda is None else ""
    raise UserError(f"device={wanted}: this machine has no such device{built}; choose one of auto, {', '.join(here)}")


def runs_on(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """Return whether a PyTorch ``built`` for these architectures has kernels for a GPU of this compute capability.

    Machine code (sm_75) runs on later GPUs of its generation, and PTX (compute_75) on all later GPUs. An "a" or "f" at
    the end binds either to that GPU, or to its family.
    """
    major, minor = capability
    for name in built:
        kind, _, number = name.partition("_")
        digits = number.rstrip("af")
        own = (int(digits[:-1]), int(digits[-1]))
        if number.endswith("a"):
            fits = own == capability
        elif number.endswith("f") or kind == "sm":
            fits = own[0] == major and own[1] <= minor
        else:
            fits = own <= capability
        if fits:
            return True
    return False


def why_no_kernels(device: torch.device) -> str | None:
    """Return a sentence for a PyTorch that was not built for the GPU; None if it was. Starts no kernel."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    capability, built = torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
    if not built or runs_on(capability, built):
        return None
    where = "make setup GPU=v100" if capability[0] == 7 else "see pytorch.org"
    return (
        f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, and PyTorch "
        f"{torch.__version__} has no kernels for it ({' '.join(built)}); install a build that has: {where}"
    )


def best_precision(device: torch.device) -> str:
    """Return "bf16" where the hardware multiplies bfloat16, else "fp16" on CUDA and "fp32" everywhere else.

    Emulation does not count: PyTorch offers bfloat16 on every CPU and GPU, and convolutions then take up to 18 times as
    long as in float32 (Zen 3).
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    multiplies = device.type == "xpu" or (device.type == "cpu" and _cpu_multiplies_bf16())
    return "bf16" if multiplies else "fp32"


def evaluation_precision(device: torch.device) -> str:
    """Return :func:`best_precision` of an accelerator, and "fp32" for a CPU, on which no figure should depend."""
    return "fp32" if device.type == "cpu" else best_precision(device)


def _cpu_multiplies_bf16() -> bool:
    """Ask oneDNN, which obeys ONEDNN_MAX_CPU_ISA but takes any AVX-512 for enough, and the CPU's flags."""
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def memory_mb(device: torch.device) -> float:
    """Return the MB that this process holds now: tensors on an accelerator, resident memory on the CPU."""
    if device.type == "cpu":
        return psutil.Process().memory_info().rss / MB
    if device.type == "mps":  # keeps no statistics
        return torch.mps.driver_allocated_memory() / MB
    return torch.accelerator.memory_allocated(device) / MB


def keep_freed_memory(most: int = 512 * MB) -> None:
    """Let this process keep up to ``most`` bytes that it frees, for its next allocation, where the C library is glibc.

    By default glibc hands large blocks back at once, and the kernel clears a page for each that is asked for again:
    that is a third of the time of a convolutional network on a CPU.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_MMAP_THRESHOLD, 32 * MB)  # the largest that it accepts
        library.mallopt(_M_TRIM_THRESHOLD, most)


def peak_memory_mb(device: torch.device) -> float:
    """Return the most MB that this process has held, counted as by :func:`memory_mb`."""
    if device.type == "mps":
        return memory_mb(device)
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device) / MB
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would start with the maximum of the process that started this one
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


def reset_peak_memory(device: torch.device) -> None:
    """Let :func:`peak_memory_mb` start again from the present use; do nothing where that is not possible."""
    if device.type not in ("cpu", "mps"):
        torch.accelerator.reset_peak_memory_stats(device)
        return
    with suppress(OSError, AttributeError):
        # The C library keeps freed memory, and a step that takes it again raises no maximum: after a larger row a small
        # one would show 12 of the 21 MB that it needs.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts again


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def name(device: torch.device) -> str:
    """Return the model of the device, e.g. ``NVIDIA A100-SXM4-80GB``; ``cpu`` for the CPU."""
    describe = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(describe(device)) if describe else device.type


def choose_attention(device: torch.device, precision: str) -> None:
    """Take the faster kernel of ``scaled_dot_product_attention``, for the whole process.

    On CPUs the backward pass of PyTorch's flash attention is slow in bfloat16 at short sequences: the demo's model
    (36 patches) trains 686 pairs/s and core without it and 458 with it (Zen 5). In float32 both are alike, and in
    float16 the kernel has no products that :class:`Fp16Products` could take over.
    PyTorch's switch has cuda in its name, but the CPU obeys it as well.
    """
    if device.type == "cpu" and precision != "fp32":
        torch.backends.cuda.enable_flash_sdp(False)


def random_state() -> dict[str, Any]:
    """Return the state of torch's generators on the CPU and on the current accelerator."""
    best = best_device().type
    state = {"torch": torch.get_rng_state()}
    return state if best == "cpu" else state | {best: torch.get_device_module(best).get_rng_state()}


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore what :func:`random_state` returned; the generator of a missing accelerator is skipped."""
    torch.set_rng_state(state["torch"])
    best = best_device().type
    if best in state:
        torch.get_device_module(best).set_rng_state(state[best])


def keep_compiled_kernels_apart() -> None:
    """Give torch's compiler a cache for each ATEN_CPU_CAPABILITY, unless TORCHINDUCTOR_CACHE_DIR names one.

    Its own cache does not distinguish them: kernels made for one abort in another, or give NaN (torch 2.13).
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    capability, default = os.environ.get("ATEN_CPU_CAPABILITY"), default_cache_dir()
    if capability and os.environ.get("TORCHINDUCTOR_CACHE_DIR", default) == default:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{default}_{capability}"


class Fp16Products(TorchDispatchMode):
    """Within it a CPU multiplies float16 matrices in float32 and rounds what comes out, as a tensor core does.

    A CPU without instructions for float16 has no other fast way: PyTorch multiplies in plain loops there, and 512 x 512
    matrices take 37 times as long as in float32 (Zen 4).
    """

    names = frozenset({"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"})

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        def halves(tensors: tuple[Any, ...]) -> bool:
            return any(isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float16 for tensor in tensors)

        if func.overloadpacket.__name__ not in self.names or not halves(args):
            return func(*args, **(kwargs or {}))
        products = func(*tree_map_only(torch.Tensor, torch.Tensor.float, args), **(kwargs or {}))
        return tree_map_only(torch.Tensor, torch.Tensor.half, products)
