"""Everything of this project that only a GPU can show, in one command: ``make gpu-check``.

    python -m bench.gpu_check out=gpu-check                        # all, about two hours on one card
    python -m bench.gpu_check out=gpu-check only=[backends,loss]   # some
    python -m bench.gpu_check out=try device=cpu sizes=tiny        # the checks themselves, on a machine without one

Each check runs in its own process with a time-out, so that one that fails, hangs or runs out of memory does not
stop the others. ``out/gpu_check.md`` and ``out/gpu_check.json`` are written anew after each.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.gpu.environment import without_code
from bench.gpu.finding import FAIL, PASS, SKIPPED, markdown
from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.files import write_json
from filip.progress import say

# Name: the question that it answers, and the minutes after which it has failed
CHECKS = {
    "environment": ("What is here, and has this PyTorch kernels for it?", 5),
    "backends": ("Does every backend agree with float64?", 15),
    "loss": ("Does the loss take at most 1.5 times its three products, and what do its alternatives take?", 30),
    "steps": ("Does a training step take as long as open_clip's at most?", 30),
    "fp16": ("Do trainings in DeepSpeed's fp16 block survive overflow and kill -9, to the bit?", 30),
    "one_node": ("Does experiment=one_node run on all cards as it stands, and how fast?", 15),
    "evaluation": ("Does an evaluation on the device rank as on the CPU?", 15),
    "demo": ("Does the demo learn on the GPU what it learns on the CPU?", 60),
}


@dataclass
class GpuCheck:
    """The options of the command."""

    out: str = option(MISSING, "folder of the reports, and of what the checks write")
    device: str = option("cuda", "torch device; cpu only to try the checks themselves")
    sizes: str = option("full", "full, or tiny: seconds instead of minutes, and figures that mean nothing")
    only: list[str] = option([], f"checks to run; empty = all of {', '.join(CHECKS)}")


def main(config: GpuCheck) -> None:
    """Run the checks and write what they found."""
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"no GPU: torch {torch.__version__} sees none, so there is nothing to check "
            "(device=cpu sizes=tiny tries the checks themselves)"
        )
    if config.device.startswith("cuda") and (missing := without_code()):
        raise UserError(
            f"torch {torch.__version__} has no machine code for {', '.join(missing)}, only for "
            f"{' '.join(torch.cuda.get_arch_list())}: times would be of something else; install a build that has "
            "(docs/training.md says under V100 which, else pytorch.org)"
        )
    if config.sizes not in ("full", "tiny"):
        raise UserError(f"sizes={config.sizes}: should be full or tiny")
    if unknown := set(config.only) - set(CHECKS):
        raise UserError(f"only={sorted(unknown)}: should be among {', '.join(CHECKS)}")
    out = Path(config.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for name, (question, minutes) in CHECKS.items():
        if config.only and name not in config.only:
            continue
        say(f"{name}: {question}")
        found[name] = {"question": question, **run(name, config, out / name, minutes)}
        say(f"{name}: {found[name]['verdict']}: {found[name]['said']}")
        write_json(out / "gpu_check.json", found)
        (out / "gpu_check.md").write_text(markdown(found), encoding="utf-8")
    verdicts = [check["verdict"] for check in found.values()]
    say(", ".join(f"{verdicts.count(v)} {v}" for v in (PASS, FAIL, SKIPPED)) + f"; {out / 'gpu_check.md'}")
    if FAIL in verdicts:
        sys.exit(1)


def run(name: str, config: GpuCheck, folder: Path, minutes: float) -> dict[str, Any]:
    """Return what the check found, by a separate process whose output is ``folder/log``."""
    folder.mkdir(exist_ok=True)
    result, log = folder / "finding.json", folder / "log"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.gpu.run", name, config.device, config.sizes, str(folder)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            end_session(process.pid)
            process.wait()
            return {"verdict": FAIL, "said": f"not done after {minutes} minutes; {log}", "rows": []}
    if result.exists():
        found: dict[str, Any] = json.loads(result.read_text())
        return found
    last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
    return {"verdict": FAIL, "said": f"exit code {process.returncode}: {last} ({log})", "rows": []}


def end_session(pid: int) -> None:
    """Kill a process and everything that it has started."""
    import os
    import signal
    from contextlib import suppress

    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    run_command(main, GpuCheck)
