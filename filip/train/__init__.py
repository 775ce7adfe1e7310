"""The training engine: ``deepspeed --num_gpus N --module filip.train experiment=… …``.

Read examples/train.py first, then :mod:`~filip.train.loop` (a run from its first line to its result) and ``step`` (one
step and what is due after it), ``run`` (what a step touches, and what is logged of it), ``config`` (every field and its
reason), ``engine``, ``losses``, ``optimizers``, ``lamb`` (whole-parameter norms under ZeRO), ``checkpoint`` (killed,
stopped, moved to other ranks), ``telemetry`` and ``watchdog`` (logging and alerts), ``validation``, ``provenance``,
``costs`` (memory before anything is allocated), ``supervise`` (the next start).
docs/training.md is the manual.
"""
