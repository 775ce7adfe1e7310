"""Evaluation while training: numbers and pictures in TensorBoard, and the run itself is not disturbed by it."""

import json
import tarfile
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from filip.eval.cards import load_cards
from filip.eval.encode_set import Context
from filip.eval.encoders import load_encoder
from filip.eval.protocols import evaluate
from tests.support.shards import add_to_tar
from tests.support.squares import COLOURS, PLACES, picture
from tests.support.training import records, run_many, same_weights, series, train_arguments


def write_test_set(folder: Path) -> list[str]:
    """Write a test set that asks which colour the square is: CLIP_benchmark's layout, a card of each kind."""
    names = list(COLOURS)
    for kind in ("colours", "captions"):
        (folder / kind / "test").mkdir(parents=True)
        (folder / kind / "test" / "nshards.txt").write_text("1")
        with tarfile.open(folder / kind / "test" / "0.tar", "w") as tar:
            for i, name in enumerate(names):
                for j, place in enumerate(PLACES):
                    key = f"s{i * len(PLACES) + j:07d}"
                    back = COLOURS[names[(i + 3) % len(names)]]
                    add_to_tar(tar, f"{key}.png", picture(COLOURS[name], back, place))
                    text = str(i) if kind == "colours" else f"a {name} square at the {place}"
                    add_to_tar(tar, f"{key}.{'cls' if kind == 'colours' else 'txt'}", text.encode())
                    false = f"a {names[i - 1]} square at the {place}"
                    add_to_tar(tar, f"{key}.choices.txt", f"a {name} square at the {place}\n{false}".encode())
    (folder / "colours" / "classnames.txt").write_text("\n".join(names))
    (folder / "colours" / "zeroshot_classification_templates.txt").write_text("a {c} square")
    (folder / "captions" / "dataset_type.txt").write_text("retrieval")
    paths = []
    cards = (("colours", "classification", "top1"), ("captions", "retrieval", "recall"))
    for name, kind, metric in (*cards, ("choices", "selection", "accuracy")):
        card = {"name": name, "title": name, "kind": kind, "metric": metric, "loader": "webdataset"}
        layout = {"path": "captions", "choices": "choices.txt"} if kind == "selection" else {"path": name}
        card |= {"layouts": {"webdataset": {**layout, "split": "test"}}, "license": "none", "homepage": "none"}
        if kind == "classification":
            card |= {"prompts": "cifar10", "classes": "from the data set", "origin": "none"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(card))
        paths.append(str(folder / f"{name}.yaml"))
    return paths


@pytest.mark.slow
def test_evaluations_are_shown_and_change_nothing(squares: Path, tmp_path: Path) -> None:
    colours, captions, choices = write_test_set(tmp_path / "sets")
    common = ("max_steps=6", "zero_stage=3")
    measured = (*("eval.every_steps=3", f"eval.root={tmp_path / 'sets'}"), f"eval.data=[{colours},{captions}]")
    runs = [
        train_arguments(squares, tmp_path / "without", *common),
        train_arguments(squares, tmp_path / "with", *common, *measured),
        train_arguments(squares, tmp_path / "bad", *common, "eval.every_steps=3", f"eval.data=[{colours}]"),
        train_arguments(
            squares, tmp_path / "selected", *common, *measured, "engine=ddp", "zero_stage=1",
            "optimizer.name=adamw", f"eval.data=[{choices}]",
        ),
    ]  # fmt: skip
    assert run_many(2, runs, tmp_path / "log") == [0, 0, 2, 0], (tmp_path / "log").read_text()[-3000:]
    assert len(series(tmp_path / "selected", "eval/choices_mean")) == 2
    assert all(norm > 0 for norm in series(tmp_path / "selected", "optimizer/grad_norm")), "without DeepSpeed, too"
    last = tmp_path / "with" / "eval" / "model.safetensors"
    assert same_weights(tmp_path / "without" / "model.safetensors", last)
    board = EventAccumulator(str(tmp_path / "with" / "tensorboard"))
    board.Reload()
    expected = {"eval/colours", "eval/captions_i2t_r1", "eval/captions_t2i_r1"}
    assert expected <= set(board.Tags()["scalars"])
    assert [e.step for e in board.Scalars("eval/colours")] == [3, 6]
    assert "data/augmented" in set(board.Tags()["images"])
    result = json.loads((tmp_path / "with" / "eval" / "zero_shot-00000006.json").read_text())
    assert result["benchmarks"]["colours"]["n"] == 32
    assert board.Scalars("eval/colours")[-1].value == pytest.approx(result["benchmarks"]["colours"]["value"])
    intervals = [line for line in records(tmp_path / "with") if "fleet/data_wait_slowest_seconds" in line]
    assert len(intervals) == 6 and all(line["fleet/data_wait_slowest_rank"] in (0, 1) for line in intervals)
    # what the first rank found is what the command finds in the same weights
    folder = tmp_path / "with" / "eval"
    encoder = load_encoder(str(folder / "model.safetensors"))
    context = Context(str(tmp_path / "sets"))
    alone, _ = evaluate("zero_shot", encoder, load_cards([colours]), context)
    assert alone["benchmarks"] == result["benchmarks"]
    shared = json.loads((folder / "retrieval-00000006.json").read_text())["benchmarks"]
    alone, _ = evaluate("retrieval", encoder, load_cards([captions]), context)
    assert alone["benchmarks"] == shared
