"""Peaks and memory of GPUs from their data sheets: for ``speed/mfu`` in a log, and for what fits in a plan.

Peaks are of dense products, per GPU. None was measured by us, and no time is computed from them: the share of its peak
that a GPU reaches is nobody's to state in advance.
"""

from __future__ import annotations

from dataclasses import dataclass

GB, TFLOP = 1e9, 1e12


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    title: str
    half: float  # flop/s of dense 16-bit products
    single: float  # flop/s of float32 products, as torch multiplies by default (no TF32)
    memory: float  # bytes
    bf16: bool  # multiplies bfloat16 (compute capability 8.0)
    matches: str  # in the name that the driver reports


# NVIDIA's data sheets of the SXM modules, which from the A100 on state 16-bit peaks with sparsity; half of it stands
# here. Compared with pages that quote them:
# - V100: developer.nvidia.com/programming-tensor-cores-cuda-9-0 (125), grokipedia.opelly.me/articles/nvidia-tesla-v100
#   (15.7).
# - A100: glennklockwood.com/garden/processors/A100, after nvidia-a100-datasheet-us-nvidia-1758950-r4.
# - H100: glennklockwood.com/garden/processors/h100 (989.4, 66.9).
# - H200: saulelectric.com/nvidia-h200.html (141 GB), the H100's arithmetic.
GPUS = {
    "v100": Gpu("V100 SXM2 32 GB", 125 * TFLOP, 15.7 * TFLOP, 32 * GB, False, "V100"),
    "a100": Gpu("A100 SXM 80 GB", 312 * TFLOP, 19.5 * TFLOP, 80 * GB, True, "A100"),
    "h100": Gpu("H100 SXM", 989.4 * TFLOP, 66.9 * TFLOP, 80 * GB, True, "H100"),
    "h200": Gpu("H200 SXM", 989.4 * TFLOP, 66.9 * TFLOP, 141 * GB, True, "H200"),
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return a device's peak in flop/s, by the name that its driver reports; None without a data sheet above."""
    for gpu in GPUS.values():
        if gpu.matches in device_name and "PCIe" not in device_name and "NVL" not in device_name:
            return gpu.single if precision == "fp32" else gpu.half
    return None
