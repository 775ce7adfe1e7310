"""The training engine: ``deepspeed --num_gpus N --no_local_rank --module filip.train experiment=… …``.

Read in this order: :mod:`~filip.train.loop` (a run from its first line to its result), ``config`` (every field and
its reason), ``engine`` and ``step`` (DeepSpeed and the loss), ``lamb`` and ``fragments`` (whole-parameter norms under
ZeRO), ``checkpoint`` (killed, stopped, moved to other ranks), ``telemetry``, ``progress`` and ``watchdog`` (what a run
tells), ``evaluation``, ``result``, ``plan`` (memory before anything is allocated). docs/training.md is the manual.
"""
