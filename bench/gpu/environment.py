"""The machine, its software, and whether PyTorch was built for its cards."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from bench.gpu.finding import FAIL, PASS, Finding, Place


def check(place: Place) -> Finding:
    rows = [
        {"what": "Python", "found": platform.python_version()},
        {"what": "system", "found": platform.platform()},
    ]
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
    missing = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        rows.append(
            {
                "what": f"GPU {index}",
                "found": f"{card.name}, {card.major}.{card.minor}, {card.total_memory / 1e9:.0f} GB, "
                f"{card.multi_processor_count} processors",
            }
        )
        # A kernel runs on later cards of its generation, and PTX (compute_…) on all later ones.
        runs = [
            a
            for a in built
            if a.startswith(f"sm_{card.major}") and int(a[4:].rstrip("af")) % 10 <= card.minor
        ]
        ptx = [a for a in built if a.startswith("compute_")]
        if not runs and not ptx:
            missing.append(f"{card.name} ({card.major}.{card.minor})")
    if missing:
        return Finding(
            FAIL, f"this PyTorch has no kernels for {', '.join(missing)}: see docs/interaction_how.md", rows
        )
    return Finding(PASS, f"{torch.cuda.device_count()} x {place.name}, torch {torch.__version__}", rows)
