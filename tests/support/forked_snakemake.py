"""Runs Snakemake several times, each time in a separate process that is forked after the imports.

    python tests/support/forked_snakemake.py '{"FILE": ["--configfile", "a.yaml", "-n", …], …}'

Each FILE gets what that run prints, and its exit code as the last line.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback

import snakemake.cli

import filip.train.config  # noqa: F401
import workflow.study  # noqa: F401  # all are what the Snakefile imports, and most of the time of a dry run


def run(arguments: list[str]) -> int:
    sys.argv[1:] = arguments  # by which the Snakefile sees that it is a dry run, and measures no speed
    try:
        snakemake.cli.main(arguments)
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    gc.freeze()
    for file, arguments in json.loads(sys.argv[1]).items():
        if not (child := os.fork()):
            target = os.open(file, os.O_WRONLY | os.O_CREAT)
            os.dup2(target, 1)
            os.dup2(target, 2)
            code = run(arguments)
            print(f"\n{code}", flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
