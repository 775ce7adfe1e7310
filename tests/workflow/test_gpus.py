"""Commands that are given GPUs of their own: never one that another command has, and a port that goes with them."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.processes import run_python
from workflow.gpus import LOCKS, VARIABLE, take
from workflow.study import ROOT


def environment(tmp_path: Path, gpus: str) -> dict[str, str]:
    return {**os.environ, VARIABLE: gpus, LOCKS: str(tmp_path), "PYTHONPATH": str(ROOT)}


def output(tmp_path: Path, gpus: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "workflow.gpus", *arguments, variables=environment(tmp_path, gpus), cwd=ROOT)


def test_no_gpu_is_given_twice_and_too_few_are_none(tmp_path: Path) -> None:
    first = take(2, ["0", "1", "2"], tmp_path)
    assert first is not None and list(first) == ["0", "1"]
    assert take(2, ["0", "1", "2"], tmp_path) is None
    second = take(1, ["0", "1", "2"], tmp_path)  # what the refused one had looked at is free again
    assert second is not None and list(second) == ["2"]
    for lock in first.values():
        os.close(lock)
    third = take(2, ["0", "1", "2"], tmp_path)
    assert third is not None and list(third) == ["0", "1"]


def test_a_command_sees_its_gpus_and_has_a_port_of_its_own(tmp_path: Path) -> None:
    shell = ["sh", "-c", f"echo ${VARIABLE} @gpus @port"]
    assert output(tmp_path, "3,5,6", "2", "port=29500", "--", *shell).stdout == "3,5 3,5 29800\n"
    held = take(1, ["3"], tmp_path)
    assert held is not None
    assert output(tmp_path, "3,5,6", "2", "port=29500", "--", *shell).stdout == "5,6 5,6 30000\n"
    # no GPU: the command finds out itself
    assert output(tmp_path, "", "2", "--", *shell).stdout == "0,1 29500\n"


def test_more_gpus_than_there_are_is_one_sentence(tmp_path: Path) -> None:
    refused = output(tmp_path, "0,1", "8", "--", "true")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: 8 GPUs are asked for and this machine has 2")


def test_a_command_waits_for_a_gpu_until_its_holder_is_gone_even_if_killed(tmp_path: Path) -> None:
    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "workflow.gpus", "1", "--", "sh", "-c", f"echo ${VARIABLE}; read line"]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path, "7"), text=True, **pipes)

    with start() as first:
        assert first.stdout is not None and first.stdout.readline() == "7\n"
        with start() as second:
            assert second.stdout is not None and second.stderr is not None and second.stdin is not None
            assert second.stderr.readline() == "waiting for 1 of 1 GPUs\n"
            first.kill()
            assert second.stdout.readline() == "7\n"
            second.stdin.close()
            assert second.wait(60) != 2
