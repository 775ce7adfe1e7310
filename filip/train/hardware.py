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


# NVIDIA's data sheets of the SXM modules, which from the H100 on state 16-bit peaks with sparsity: half of it stands
# here. We read them as the tables of Lightning (fabric/utilities/throughput.py) and Composer
# (callbacks/speed_monitor.py) quote them, which agree:
# - V100: images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf
# - A100: www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/
#   nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf
# - H100: resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet (1,979 with sparsity, 67)
# - H200: resources.nvidia.com/en-us-data-center-overview-mc/en-us-data-center-overview/hpc-datasheet-sc23-h200
GPUS = {
    "v100": Gpu("V100 SXM2 32 GB", 125 * TFLOP, 15.7 * TFLOP, 32 * GB, False, "V100"),
    "a100": Gpu("A100 SXM 80 GB", 312 * TFLOP, 19.5 * TFLOP, 80 * GB, True, "A100"),
    "h100": Gpu("H100 SXM", 989.5 * TFLOP, 67 * TFLOP, 80 * GB, True, "H100"),
    "h200": Gpu("H200 SXM", 989.5 * TFLOP, 67 * TFLOP, 141 * GB, True, "H200"),
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return a device's peak in flop/s, by the name that its driver reports; None without a data sheet above."""
    for gpu in GPUS.values():
        if gpu.matches in device_name and "PCIe" not in device_name and "NVL" not in device_name:
            return gpu.single if precision == "fp32" else gpu.half
    return None
