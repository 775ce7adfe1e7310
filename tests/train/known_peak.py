"""Run by test_telemetry.py as a rank: a training on a device whose peak is listed as 1e9 flop/s in float32."""

import runpy
from dataclasses import replace

from filip.train.costs import GPUS

if __name__ == "__main__":
    GPUS["this"] = replace(GPUS["v100"], title="this machine", single=1e9, half=0.0, matches="cpu")
    runpy.run_module("filip.train", run_name="__main__", alter_sys=True)
