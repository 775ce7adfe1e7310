"""TensorBoard gets more than curves: a chart for all runs of a study, and a row of settings and final metrics."""

import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from filip.train.config import TrainConfig
from filip.train.plan import CAPTION_TOKENS, encoder_flops
from filip.train.provenance import learning_settings
from filip.train.run import final_metrics
from filip.train.telemetry import Telemetry
from tests.support.launched_ranks import Ranks
from tests.support.training import compose, records, train_arguments


@pytest.fixture
def board(tmp_path: Path) -> EventAccumulator:
    """Return the events of a run of twenty steps that has ended."""
    telemetry = Telemetry(tmp_path / "run", True, 0)
    record = {"loss/total": 1.5, "loss/i2t": 1.4, "accuracy/i2t": 0.5, "eval/food": 0.2, "speed/pairs_per_second": 9.0}
    telemetry.record(10, {**record, "optimizer/logit_scale": 14.0, "accuracy/t2i": 0.4})
    telemetry.hparams(20, learning_settings(TrainConfig()), {**final_metrics(record), "eval/food": 0.2})
    telemetry.close()
    result = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    result.Reload()
    return result


def test_the_charts_of_all_runs_show_what_a_run_records(board: EventAccumulator) -> None:
    stored = board.summary_metadata  # by tag
    tag = next(name for name in stored if "custom_scalars" in name)
    (event,) = board.Tensors(tag)
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    (category,) = layout.category
    patterns = [pattern for chart in category.chart for pattern in chart.multiline.tag]
    assert len(patterns) == len(category.chart) >= 5
    for pattern in patterns:
        assert any(re.search(pattern, name) for name in board.Tags()["scalars"]), pattern


@pytest.mark.slow
def test_mfu_is_the_encoders_arithmetic_over_the_peak_of_the_device(squares: Path, tmp_path: Path) -> None:
    few = ("max_steps=4", "optimizer.warmup_steps=1")
    arguments = train_arguments(squares, tmp_path / "run", *few)[2:]
    ranks = Ranks(1, [str(Path(__file__).parent / "known_peak.py"), *arguments], tmp_path / "log")
    assert ranks.wait() == [0], ranks.text()[-3000:]
    model = compose("experiment=demo", "model=tiny").model
    step = 3 * encoder_flops(model, min(CAPTION_TOKENS, model.text.context_length))
    intervals = [line for line in records(tmp_path / "run") if "speed/mfu" in line]
    assert len(intervals) == 4
    for line in intervals:
        assert line["speed/mfu"] == pytest.approx(step * line["speed/pairs_per_second"] / 1e9)
    assert ranks.text().count("MFU ") == 4
