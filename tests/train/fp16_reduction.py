"""Run in each rank by test_precision.py: the gradient that arrives where every rank has the smallest number of fp16."""

import json
import os

import torch

from filip.resources import find
from filip.train.engine import deepspeed_accelerator
from filip.train.ranks import start_ranks

SMALLEST = 2.0**-24

torch.set_num_threads(1)
ranks = start_ranks()
deepspeed_accelerator()
import deepspeed  # noqa: E402

found = {}
for stage in (1, 3):
    settings = json.loads(find("deepspeed", f"zero{stage}_fp16").read_text())
    settings["fp16"]["loss_scale"] = 1.0
    settings["train_micro_batch_size_per_gpu"] = 1
    model = torch.nn.Linear(64, 64, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    outputs = engine(torch.ones(1, 64, dtype=torch.float16))
    engine.backward((outputs * torch.full((64,), SMALLEST, dtype=torch.float16)).sum())
    gradients = [part for parts in engine.optimizer.averaged_gradients.values() for part in parts or []]
    found[stage] = max(float(part.abs().max()) for part in gradients if part is not None) / SMALLEST
if ranks.is_main:
    print("RESULT", json.dumps(found), flush=True)
os._exit(0)
