"""TensorBoard gets more than curves: a chart for all runs of a study, and a row of settings and final metrics."""

import json
import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from filip.models.costs import encoder_flops
from filip.train.config import TrainConfig
from filip.train.costs import CAPTION_TOKENS
from filip.train.provenance import learning_settings
from filip.train.run import final_metrics
from filip.train.telemetry import Telemetry
from tests.support.launched_ranks import Ranks
from tests.support.training import compose, records, run_many, train_arguments

SMOOTH = ("experiment=demo_from_scratch", "token_maximum=smooth")


@pytest.fixture
def board(tmp_path: Path) -> EventAccumulator:
    """Return the events of a run of twenty steps that has ended."""
    telemetry = Telemetry(tmp_path / "run", True, 0)
    record = {"loss/total": 1.5, "loss/i2t": 1.4, "accuracy/i2t": 0.5, "eval/food": 0.2, "speed/pairs_per_second": 9.0}
    healthy = {"optimizer/grad_norm": 1.0, "optimizer/lr": 1e-3, "speed/mfu": 0.4, "speed/data_share": 0.1}
    telemetry.settings(0, learning_settings(compose(*SMOOTH)), {"seed": 7}, learning_settings(TrainConfig()))
    telemetry.record(10, {**record, **healthy, "optimizer/logit_scale": 14.0, "accuracy/t2i": 0.4, "memory/peak_mb": 9})
    telemetry.final(20, {**final_metrics(record), "eval/food": 0.2})
    telemetry.close()
    result = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    result.Reload()
    return result


def test_the_charts_of_all_runs_show_what_a_run_records(board: EventAccumulator) -> None:
    stored = board.summary_metadata  # by tag
    tag = next(name for name in stored if "custom_scalars" in name)
    (event,) = board.Tensors(tag)
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["Is it healthy?", "Runs side by side"]
    patterns = [p for category in layout.category for chart in category.chart for p in chart.multiline.tag]
    for pattern in patterns:
        assert any(re.search(pattern, name) for name in board.Tags()["scalars"]), pattern


def test_settings_are_a_row_before_the_first_step_and_text(board: EventAccumulator) -> None:
    content = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    row = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert row["token_maximum"].string_value == "smooth" and row["optimizer.base_lr"].number_value == 2e-3
    texts = {tag: board.Tensors(f"config/{tag}/text_summary")[0] for tag in ("differs_from_the_paper", "whole")}
    assert {event.step for event in texts.values()} == {0}
    assert b"| token_maximum | hard | smooth |\n" in texts["differs_from_the_paper"].tensor_proto.string_val[0]
    assert b"seed: 7" in texts["whole"].tensor_proto.string_val[0]


def test_every_chart_says_what_it_is(board: EventAccumulator) -> None:
    assert not [tag for tag in board.Tags()["scalars"] if not board.summary_metadata[tag].summary_description]


@pytest.mark.slow
def test_steps_are_recorded_for_a_viewer(squares: Path, tmp_path: Path) -> None:
    arguments = train_arguments(squares, tmp_path / "run", "max_steps=6", "profile_steps=3-4")
    assert run_many(1, [arguments], tmp_path / "log") == [0]
    (file,) = (tmp_path / "run/profile").iterdir()
    events = json.loads(file.read_text())["traceEvents"]
    assert file.name == "trace_rank0.json"
    assert sum(event.get("name") == "aten::embedding" for event in events) == 2  # one forward pass a step


@pytest.mark.slow
def test_mfu_is_the_arithmetic_of_encoders_and_loss_over_the_peak_of_the_device(squares: Path, tmp_path: Path) -> None:
    few = ("max_steps=4", "optimizer.warmup_steps=1")
    arguments = train_arguments(squares, tmp_path / "run", *few)[2:]
    ranks = Ranks(1, [str(Path(__file__).parent / "known_peak.py"), *arguments], tmp_path / "log")
    assert ranks.wait() == [0], ranks.text()[-3000:]
    model = compose("experiment=demo_from_scratch", "model=tiny").model
    step = 3 * encoder_flops(model, CAPTION_TOKENS)
    step += 3 * 2 * 16 * 24 * CAPTION_TOKENS * model.embed_dim  # each image's patches with all captions, three times
    intervals = [line for line in records(tmp_path / "run") if "speed/mfu" in line]
    assert len(intervals) == 4
    for line in intervals:
        assert line["speed/mfu"] == pytest.approx(step * line["speed/pairs_per_second"] / 1e9)
    assert ranks.text().count("MFU ") == 4
