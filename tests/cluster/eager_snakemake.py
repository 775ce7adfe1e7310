"""Snakemake whose Slurm plugin asks for its jobs every second. No setting says so: it asks ever more seldom, until
three minutes are between two questions. What it makes of the answers is untouched.

It finds no sacct, either: our Slurm has no accounting, and a plugin that falls back to sacct (when slurmctld does not
answer, be it for the load) forgets its jobs when that fails, and waits for ever.
"""

import snakemake_executor_plugin_slurm as plugin
from snakemake.cli import main

available = plugin.is_query_tool_available
plugin.is_query_tool_available = lambda name: name != "sacct" and available(name)
plugin.Executor.next_seconds_between_status_checks = property(lambda self: 1, lambda self, seconds: None)
main()
