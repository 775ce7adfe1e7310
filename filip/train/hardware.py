"""Figures of hardware, each with its source: what a simulated fleet is computed from (``filip train plan gpus=…``).

Peaks are of dense products, per GPU; bandwidths are of one direction, in bytes a second. None was measured by us.
"""

from __future__ import annotations

from dataclasses import dataclass

from filip.command import option

GB, TB, TFLOP = 1e9, 1e12, 1e12


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    title: str
    half: float  # flop/s of dense 16-bit products
    single: float  # flop/s of float32 products, as torch multiplies by default (no TF32)
    memory: float  # bytes
    bandwidth: float  # bytes a second to and from its memory
    link: float  # bytes a second to the other GPUs of the node
    triton: bool  # has what the Triton backend needs (compute capability 8.0)
    price: float | None  # USD per GPU and hour; None: no source at hand
    matches: str  # in the name that the driver reports


# half, single, memory, bandwidth, link: NVIDIA's data sheets of the SXM modules, which state NVLink for both directions
# and, from the A100 on, 16-bit peaks with sparsity; half of either stands here. Compared with pages that quote them:
# - V100: developer.nvidia.com/programming-tensor-cores-cuda-9-0 (125), grokipedia.opelly.me/articles/nvidia-tesla-v100
#   (15.7); NVLink 2.0 is 6 links of 25 GB/s each way (nvidia.com/en-us/data-center/nvlink).
# - A100: glennklockwood.com/garden/processors/A100, after nvidia-a100-datasheet-us-nvidia-1758950-r4.
# - H100: glennklockwood.com/garden/processors/h100 (989.4, 66.9, 3.35 TB/s, 900 GB/s both ways).
# - H200: saulelectric.com/nvidia-h200.html (141 GB, 4.8 TB/s, 450 GB/s each way), the H100's arithmetic.
# price: "Amazon EC2 Capacity Blocks for ML Pricing" (aws.amazon.com/ec2/capacityblocks/pricing), effective hourly rate
# per accelerator until January 2025: p4d (A100 with 40 GB), p5, p5e. It changes every quarter: give your own by price=.
GPUS = {
    "v100": Gpu(
        "V100 SXM2 32 GB", 125 * TFLOP, 15.7 * TFLOP, 32 * GB, 900 * GB, 150 * GB, False, None, "V100"
    ),
    "a100": Gpu(
        "A100 SXM 80 GB", 312 * TFLOP, 19.5 * TFLOP, 80 * GB, 2.039 * TB, 300 * GB, True, 1.844, "A100"
    ),
    "h100": Gpu("H100 SXM", 989.4 * TFLOP, 66.9 * TFLOP, 80 * GB, 3.35 * TB, 450 * GB, True, 4.916, "H100"),
    "h200": Gpu("H200 SXM", 989.4 * TFLOP, 66.9 * TFLOP, 141 * GB, 4.8 * TB, 450 * GB, True, 5.408, "H200"),
}


@dataclass(frozen=True)
class Network:
    """The network between the nodes."""

    title: str
    cards: int  # per node
    card: float  # bytes a second of one card
    latency: float  # seconds per message


# cards x speed: InfiniBand over four lanes carries 100 Gb/s as EDR, 200 as HDR and 400 as NDR (NVIDIA's ConnectX-4, -6
# and -7). Four EDR cards are in a DGX-1 ("NVIDIA DGX-1 With Tesla V100 System Architecture", WP-08437); that a DGX A100
# has eight HDR cards for computing and a DGX H100 eight NDR ones is from memory. Latencies are round figures of ours:
# NCCL's own model of a hop over the network (hwLat in src/graph/tuning.cc of github.com/NVIDIA/nccl) has 2.7 to 14
# microseconds in a ring, by protocol; TCP is assumed to take 30.
NETWORKS = {
    "ethernet_25": Network("1 x 25 Gb/s Ethernet", 1, 25 / 8 * GB, 30e-6),
    "ethernet_100": Network("1 x 100 Gb/s Ethernet", 1, 100 / 8 * GB, 30e-6),
    "edr_1": Network("1 x 100 Gb/s InfiniBand", 1, 100 / 8 * GB, 5e-6),
    "edr_4": Network("4 x 100 Gb/s InfiniBand", 4, 100 / 8 * GB, 5e-6),
    "hdr_8": Network("8 x 200 Gb/s InfiniBand", 8, 200 / 8 * GB, 5e-6),
    "ndr_8": Network("8 x 400 Gb/s InfiniBand", 8, 400 / 8 * GB, 5e-6),
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return a device's peak in flop/s, by the name that its driver reports; None without a data sheet above."""
    for gpu in GPUS.values():
        if gpu.matches in device_name and "PCIe" not in device_name and "NVL" not in device_name:
            return gpu.single if precision == "fp32" else gpu.half
    return None


@dataclass
class FleetConfig:
    """Assumptions on what a fleet reaches; the log of a first run on the real one tells (speed/mfu, data wait)."""

    gpus_per_node: int = option(8, "GPUs of a node; a fleet has whole nodes, or is a part of one", at_least=1)
    pairs: int = option(340_000_000, "pairs of an epoch (the paper's FILIP340M)", at_least=1)
    encoder_efficiency: float = option(0.35, "share of the GPU's peak that the encoders reach (assumed)")
    loss_efficiency: float = option(0.2, "share of it that the loss's products reach (assumed)")
    network_efficiency: float = option(0.7, "share of a link's bandwidth that collectives reach (assumed)")
    disk_gb_per_second: float = option(
        5.0, "that the file system takes and gives, all nodes together (assumed)"
    )
    images_per_core: float = option(
        489.0, "images a second and loader worker; measured at 224 px, bench/loader.py"
    )
    image_kb: float = option(20.0, "size of a stored image, in kB (assumed)")
