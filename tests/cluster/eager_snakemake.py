"""Snakemake whose Slurm plugin asks for its jobs every second. No setting says so: it asks ever more seldom, until
three minutes lie between two questions. How it asks, and what it makes of the answers, is untouched.
"""

from __future__ import annotations

from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

Executor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, seconds: None)
main()
