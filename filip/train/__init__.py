"""The training engine: ``deepspeed --num_gpus N --module filip.train experiment=… …``.

Read in this order: :mod:`~filip.train.loop` (a run from its first line to its result), ``config`` (every field and its
reason), ``engine``, ``engines``, ``deepspeed_engine`` and ``step``, ``losses`` (one file per term), ``optimizers``,
``lamb`` and ``zero_layout`` (whole-parameter norms under ZeRO), ``checkpoint`` (killed, stopped, moved to other ranks),
``progress``, ``telemetry`` and ``watchdog`` (logging and alerts), ``evaluation``, ``result`` and ``provenance``,
``plan`` (memory before anything is allocated). docs/training.md is the manual.
"""
