"""Kernels that are wrong, or that raise: a sentence, and the training that the tiled backend makes."""

from pathlib import Path

import pytest

from tests.support.training import records, run_many, same_weights, train_arguments

WRONG = "the kernels are wrong on this machine: of 12 own pairs they make the loss"
FAULTS = {
    "wrong value": ("smooth", WRONG),
    "lost gradient": ("hard", WRONG),
    "does not compile": ("smooth", "tests.support.broken_kernels raised RuntimeError: at 41:12: no tensor cores;"),
    "raises later": ("hard", "tests.support.broken_kernels raised ValueError: out of resource: shared memory;"),
}


@pytest.mark.slow
def test_faulty_kernels_end_in_a_sentence_and_tiled(squares: Path, tmp_path: Path) -> None:
    def arguments(name: str, maximum: str, *more: str) -> list[str]:
        # by the ring the backward finds what two calls of the forward left
        return train_arguments(
            squares, tmp_path / name, "max_steps=5", f"token_maximum={maximum}", "exchange=ring", *more
        )

    runs = [arguments(f"{backend} {maximum}", maximum, f"backend={backend}")
            for backend in ("tiled", "auto") for maximum in ("hard", "smooth")]  # fmt: skip
    runs += [arguments(fault, maximum, "backend=auto", f"fault={fault}") for fault, (maximum, _) in FAULTS.items()]
    runs.append(arguments("again", "hard", "recompute=true"))
    assert run_many(2, runs, tmp_path / "log") == [0] * len(runs)

    def said(name: str) -> list[dict]:
        return [line for line in records(tmp_path / name) if line.get("event") == "backend"]

    for fault, (maximum, sentence) in FAULTS.items():
        (event,) = said(fault)
        assert event["text"].startswith(f"rank 0: backend=auto: {sentence}"), event
        assert event["text"].endswith("this training goes on with backend=tiled, which is exact but slower")
        assert event["step"] == (1 if fault == "raises later" else 0)
        assert same_weights(*(tmp_path / name / "model.safetensors" for name in (fault, f"tiled {maximum}"))), fault
    assert same_weights(tmp_path / "again/model.safetensors", tmp_path / "tiled hard/model.safetensors")
    assert not said("auto hard") and not said("auto smooth")
    assert (tmp_path / "log").read_text().count("rank 1: backend=auto: ") == len(FAULTS)
