"""The machine, its software, and whether PyTorch was built for its cards."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from bench.gpu.finding import FAIL, PASS, Finding, Place
from filip.device import runs_on


def without_code() -> list[str]:
    """Return the GPUs for which this PyTorch has no machine code; PTX, which compiles at run time, is not enough."""
    built = [name for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        f"{card.name} ({card.major}.{card.minor})" for card in cards if not runs_on((card.major, card.minor), built)
    ]


def check(place: Place) -> Finding:
    rows = [{"what": "Python", "found": platform.python_version()}, {"what": "system", "found": platform.platform()}]
    for package in ("torch", "triton", "deepspeed", "timm", "open_clip_torch", "late-interaction-kernels"):
        try:
            rows.append({"what": package, "found": version(package)})
        except PackageNotFoundError:
            rows.append({"what": package, "found": "not installed"})
    if place.device.type != "cuda":
        return Finding(PASS, f"runs on {place.device}", rows)
    built = torch.cuda.get_arch_list()
    rows += [
        {"what": "CUDA of PyTorch", "found": str(torch.version.cuda)},
        {"what": "NCCL", "found": ".".join(map(str, torch.cuda.nccl.version()))},
        {"what": "kernels for", "found": " ".join(built)},
    ]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        rows.append(
            {
                "what": f"GPU {index}",
                "found": f"{card.name}, {card.major}.{card.minor}, {card.total_memory / 1e9:.0f} GB, "
                f"{card.multi_processor_count} processors",
            }
        )
    if missing := without_code():
        return Finding(FAIL, f"this PyTorch has no kernels for {', '.join(missing)}: see docs/training.md", rows)
    return Finding(PASS, f"{torch.cuda.device_count()} x {place.name}, torch {torch.__version__}", rows)
